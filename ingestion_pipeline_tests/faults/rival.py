"""A run in a process of its own beside others, that tells in the end what came of it.

`python -m ingestion_pipeline_tests.faults.rival JOB`, where JOB is `ingest`, the main job, or
`range`, the work loop over the whole catalogue as one range. Where to pause, and the folder for
notes, are told as to `worker`. It begins when the test lets it, so that the time in which Python
starts is over; its last words are one JSON document, and its exit code is that of `ingest`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingestion_pipeline.cli.exit_codes import exit_code
from ingestion_pipeline.database.embeddings import EmbeddingStore
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.errors import IngestionError
from ingestion_pipeline.ranges import EVERYTHING, key_of
from ingestion_pipeline.reingestion import Pace, TextKey, reingest
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.work import AspectResult, KnownVector, Lease, Outcome, RunIdentity, Spend
from ingestion_pipeline_tests.faults.worker import (
    FOLDER,
    NTH,
    SECONDS,
    STEP,
    NotedModels,
    Step,
    Watch,
)

READY = "ready"
GATE = "gate"
"""When this process is ready it waits until there is such a file."""
LEASE_SECONDS = "RIVAL_LEASE_SECONDS"
"""Of the job `range`, which keeps to no lower limit."""
NOTES = "notes"
"""A line of JSON for each look-up of known vectors and for each commit, with its keys and time."""


def watch_texts(folder: Path) -> None:
    """Note which texts are looked up, and which embedded ones are committed, when.

    A look-up is noted before it is made and a commit after it: a text is known to be unknown from
    the one to the other. Times are of the machine's monotonic clock, the same for all processes.
    """
    known_vectors, commit = EmbeddingStore.known_vectors, EmbeddingStore.commit

    def note(what: str, keys: Collection[TextKey]) -> None:
        line = {
            "what": what,
            "at": time.monotonic(),
            "keys": [f"{digest.hex()} {fingerprint}" for digest, fingerprint in keys],
        }
        with (folder / NOTES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def noted_look_up(
        store: EmbeddingStore, texts: Collection[TextKey]
    ) -> dict[TextKey, KnownVector]:
        note("looked up", texts)
        return known_vectors(store, texts)

    def noted_commit(
        store: EmbeddingStore, lease: Lease, results: Sequence[AspectResult], spend: Spend
    ) -> list[AspectResult]:
        written = commit(store, lease, results, spend)
        embedded = [it.stale for it in written if it.outcome is Outcome.EMBEDDED]
        note("committed", [(stale.digest, stale.fingerprint) for stale in embedded])
        return written

    EmbeddingStore.known_vectors = noted_look_up  # type: ignore[method-assign, assignment]
    EmbeddingStore.commit = noted_commit  # type: ignore[method-assign, assignment]


class Lines:
    """A listener that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)

    def stage(self, name: str) -> None:
        """Ignore it."""

    def progress(self, progress: object) -> None:
        """Ignore it."""

    def verdict(self, verdict: object) -> None:
        """Ignore it."""

    def check(self, result: object) -> None:
        """Ignore it."""


def _ingest(settings: Settings, models: NotedModels) -> tuple[Mapping[str, Any], int]:
    """The main job: what came of it, and the exit code of the command."""
    from ingestion_pipeline.cli.main_job import code_of
    from ingestion_pipeline.orchestration.in_process import run_ingest

    _wait_at_the_gate()
    lines = Lines()
    outcome = run_ingest(settings, lines, models=models)
    told = {
        "lines": lines.said,
        "held": dict(outcome.held_ranges),
        "failed": dict(outcome.failed_ranges),
        "checks": {result.name: result.status for result in outcome.checks},
    }
    return told, code_of(outcome)


def _range(settings: Settings, models: NotedModels) -> tuple[Mapping[str, Any], int]:
    """The work loop over the whole catalogue."""
    lines = Lines()
    with open_shop(settings) as shop:
        shop.prepare()
        _wait_at_the_gate()
        reingest(
            EVERYTHING,
            catalogue=shop.catalogue,
            store=shop.embeddings,
            models=models.of(settings, lines.line),
            owner=RunIdentity("rival", "rival", key_of(EVERYTHING, shop.id_type)),
            pace=Pace(
                products_per_page=settings.work.products_per_page,
                tokens_per_batch=settings.work.tokens_per_batch,
                lease_seconds=int(os.environ[LEASE_SECONDS]),
                retry_seconds=settings.work.retry_seconds,
            ),
            say=lines.line,
        )
    return {"lines": lines.said}, 0


def _wait_at_the_gate() -> None:
    folder = Path(os.environ[FOLDER])
    (folder / READY).touch()
    while not (folder / GATE).exists():
        time.sleep(0.001)


def _main(job: str) -> int:
    folder = Path(os.environ[FOLDER])
    step = os.environ.get(STEP)
    watch = Watch(Step(step) if step else None, int(os.environ.get(NTH, "1")), "pause", folder)
    watch.over_the_product()
    watch_texts(folder)
    models = NotedModels(folder, float(os.environ.get(SECONDS, "0")), watch)
    told: Mapping[str, Any]
    try:
        told, code = {"ingest": _ingest, "range": _range}[job](load_settings(), models)
    except IngestionError as error:
        told, code = {"error": type(error).__name__, "message": str(error)}, exit_code(error)
    print(json.dumps(told))  # noqa: T201 - what the test reads
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))

"""A process that re-ingests a shop with known models, and stops dead at a step it is told.

`python -m ingestion_pipeline_tests.faults.worker JOB`, where JOB is `ingest`, the main job as the
terminal starts it, or `reingest`, its work loop alone, which starts in a fraction of the time. The
environment says what shop, how slow the models are, where and how to stop, and the folder in which
everything is noted. The product knows nothing of this: its steps are watched from outside.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psycopg
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import Catalogue
from ingestion_pipeline.database.embeddings import EmbeddingStore
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.preflight import ModelFacts
from ingestion_pipeline.preflight_services import ServiceFacts
from ingestion_pipeline.reingestion import AspectModel, Pace, reingest
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.shops import KnownEmbedder

Job = Literal["ingest", "reingest"]
Act = Literal["kill", "pause"]

FOLDER = "WORKER_FOLDER"
SECONDS = "WORKER_SECONDS"
STEP = "WORKER_STEP"
NTH = "WORKER_NTH"
ACT = "WORKER_ACT"

BEGUN = "begun"
PAUSED = "paused"
RESUME = "resume"
SENT = "sent"
"""A folder with a file for each model, which holds the texts sent to it, one a line."""

_PAUSE_SECONDS = 60.0


class Step(StrEnum):
    """Where a worker may stop, in the order in which a batch comes by."""

    CLAIMED = "claimed"
    READ = "read"
    EMBEDDED = "embedded"
    COPYING = "copying"
    """Between two rows of a COPY."""
    WRITTEN = "written"
    """The vectors are written, and the ledger does not know of them yet."""
    BEFORE_COMMIT = "before commit"
    AFTER_COMMIT = "after commit"


class Watch:
    """Counts how often a step is reached, and at the nth time does what the worker was told."""

    def __init__(self, step: Step | None, nth: int, act: Act, folder: Path) -> None:
        self._step = step
        self._left = nth
        self._act = act
        self._folder = folder
        self._committing = False

    def reached(self, step: Step) -> None:
        if step is not self._step:
            return
        self._left -= 1
        if self._left == 0:
            if self._act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self._pause()

    def _pause(self) -> None:
        (self._folder / PAUSED).touch()
        deadline = time.monotonic() + _PAUSE_SECONDS
        while not (self._folder / RESUME).exists():
            if time.monotonic() > deadline:
                sys.exit("nobody has let this worker go on")
            time.sleep(0.01)

    def over_the_product(self) -> None:
        """Watch every step but `EMBEDDED`, which is the models' to tell."""
        self._after(EmbeddingStore, "claim", Step.CLAIMED)
        self._after(Catalogue, "stale_texts", Step.READ)
        self._watch_commits()
        self._watch_copies()

    def _after(self, owner: type, name: str, step: Step) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            value = method(*args, **options)
            self.reached(step)
            return value

        setattr(owner, name, watched)

    def _watch_commits(self) -> None:
        """The transaction within `EmbeddingStore.commit`, and the first statement on the ledger."""
        commit, transaction, compose = EmbeddingStore.commit, Session.transaction, Queries.compose

        def watched_commit(*args: Any, **options: Any) -> Any:
            self._committing = True
            try:
                return commit(*args, **options)
            finally:
                self._committing = False

        @contextmanager
        def watched_transaction(session: Session) -> Iterator[None]:
            with transaction(session):
                yield
                if self._committing:
                    self.reached(Step.BEFORE_COMMIT)
            if self._committing:
                self.reached(Step.AFTER_COMMIT)

        def watched_compose(queries: Queries, name: str, **literals: sql.Composable) -> Any:
            if name == "upsert_ledger":
                self.reached(Step.WRITTEN)
            return compose(queries, name, **literals)

        EmbeddingStore.commit = watched_commit  # type: ignore[method-assign]
        Session.transaction = watched_transaction  # type: ignore[method-assign, assignment]
        Queries.compose = watched_compose  # type: ignore[method-assign, assignment]

    def _watch_copies(self) -> None:
        write_row = psycopg.Copy.write_row

        def watched_write_row(copy: psycopg.Copy, row: Sequence[object]) -> None:
            write_row(copy, row)
            self.reached(Step.COPYING)

        psycopg.Copy.write_row = watched_write_row  # type: ignore[method-assign, assignment]


class NotedModels:
    """Known models that note each text in a file before they answer, and take their time."""

    def __init__(self, folder: Path, seconds: float, watch: Watch) -> None:
        self._folder = folder / SENT
        self._folder.mkdir(exist_ok=True)
        self._seconds = seconds
        self._watch = watch

    def services(self, _: Settings) -> tuple[ServiceFacts, ...]:
        return ()

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        model = settings.aspects[Aspect.DESCRIPTION].model
        return (ModelFacts(model, tuple(Aspect), source="the tests", pinned=True, bytes=0),)

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        report("Known models are ready.")
        return {aspect: self._model(settings, aspect) for aspect in Aspect}

    def _model(self, settings: Settings, aspect: Aspect) -> AspectModel:
        fingerprint = settings.fingerprint(aspect)

        def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
            with (self._folder / fingerprint).open("ab", buffering=0) as file:
                # One write: a kill leaves all of a batch here, or nothing.
                file.write("".join(f"{text}\n" for text in texts).encode())
            time.sleep(self._seconds)
            self._watch.reached(Step.EMBEDDED)
            return right

        return AspectModel(
            fingerprint, KnownEmbedder(settings.aspects[aspect].dimensions, answer=answer)
        )


def _reingest(settings: Settings, models: NotedModels) -> bool:
    """Every range through the work loop; whether it is complete, which all but an error means."""
    with open_shop(settings) as shop:
        shop.prepare()
        plan = shop.embeddings.plan_ranges(settings.ranges.products_per_range)
        for key, range_ in plan.ranges:
            reingest(
                range_,
                catalogue=shop.catalogue,
                store=shop.embeddings,
                models=models.of(settings, lambda _: None),
                owner=RunIdentity(str(uuid4()), "worker", key),
                pace=_pace(shop),
            )
    return True


def _pace(shop: Shop) -> Pace:
    work = shop.settings.work
    return Pace(
        products_per_page=work.products_per_page,
        tokens_per_batch=work.tokens_per_batch,
        lease_seconds=work.lease_seconds,
        retry_seconds=work.retry_seconds,
        max_failed_products=work.max_failed_products,
    )


def _ingest(settings: Settings, models: NotedModels) -> bool:
    """The main job; whether it is complete."""
    from ingestion_pipeline.orchestration.in_process import Nobody, run_ingest

    outcome = run_ingest(settings, Nobody(), models=models)
    return not outcome.failed_ranges and not outcome.held_ranges


def _main(job: str) -> None:
    folder = Path(os.environ[FOLDER])
    step = os.environ.get(STEP)
    watch = Watch(
        Step(step) if step else None,
        int(os.environ.get(NTH, "1")),
        "pause" if os.environ.get(ACT) == "pause" else "kill",
        folder,
    )
    watch.over_the_product()
    models = NotedModels(folder, float(os.environ.get(SECONDS, "0")), watch)
    if job == "ingest":
        # Importing Dagster takes seconds, in which there is nothing to be killed.
        import ingestion_pipeline.orchestration.in_process  # noqa: F401
    (folder / BEGUN).touch()
    complete = {"ingest": _ingest, "reingest": _reingest}[job](load_settings(), models)
    sys.exit(None if complete else "some ranges are left")


if __name__ == "__main__":
    _main(sys.argv[1])

"""Processes that work on a shop with little memory, as the environment and their arguments say.

`python -m ingestion_pipeline_tests.faults.tight_memory model MB` re-ingests the shop through a
real model that may take so much more memory than it has once loaded. `... command MB` runs
`ingest`, with known models, in so much more than it takes with everything imported.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.embedding import pinned_models, weights
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder
from ingestion_pipeline.ranges import EVERYTHING
from ingestion_pipeline.reingestion import AspectModel, Pace, reingest
from ingestion_pipeline.settings import load_settings
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.shops import KnownEmbedder

NOTES = "TIGHT_MEMORY_NOTES"
"""Names the file in which `model` notes what it came to, as JSON."""


def allow_more(megabytes: int) -> None:
    """Let this process take so much more address space than it has, and not a byte above."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


@dataclass
class WorkedThrough:
    """The work, and the memory, of a real model; and vectors that a test knows."""

    model: SentenceTransformerEmbedder
    dimensions: int
    answered: list[str] = field(default_factory=list)
    largest: int = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.model.count_tokens(texts)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        real = self.model.embed(texts)
        self.answered += texts
        self.largest = max(self.largest, len(texts))
        known = KnownEmbedder(self.dimensions).embed(texts)
        return Embeddings(known.vectors, real.tokens, real.truncated)


def _with_a_real_model(megabytes: int) -> int:
    pin = pinned_models.ALL_MINILM_L6_V2
    cache = weights.default_cache()
    files = weights.fetch(pin.name, revision=None, path=None, cache=cache)
    model = SentenceTransformerEmbedder(files.folder, dimensions=pin.dimensions, device="cpu")
    model.embed(["warm-up"])
    settings = load_settings()
    embedders = {
        fingerprint: WorkedThrough(model, settings.aspects[aspect].dimensions)
        for aspect, fingerprint in settings.fingerprints.items()
    }
    said: list[str] = []
    with open_shop(settings) as shop:
        shop.prepare()
        allow_more(megabytes)
        reingest(
            EVERYTHING,
            catalogue=shop.catalogue,
            store=shop.embeddings,
            models={
                aspect: AspectModel(fingerprint, embedders[fingerprint])
                for aspect, fingerprint in settings.fingerprints.items()
            },
            owner=RunIdentity("run-1", "run-1", "*:*"),
            pace=Pace(
                products_per_page=settings.work.products_per_page,
                tokens_per_batch=settings.work.tokens_per_batch,
                lease_seconds=settings.work.lease_seconds,
            ),
            say=said.append,
        )
    notes = {
        "said": said,
        "largest": max(embedder.largest for embedder in embedders.values()),
        "answered": {name: embedder.answered for name, embedder in embedders.items()},
    }
    Path(os.environ[NOTES]).write_text(json.dumps(notes), encoding="utf-8")
    return 0


def _the_command(megabytes: int) -> int:
    from ingestion_pipeline.cli import app
    from ingestion_pipeline.orchestration import in_process
    from ingestion_pipeline_tests.orchestration.known_models import KnownModels

    def forget(_: Sequence[str]) -> None:
        # A real model keeps no text that it has answered.
        for embedder in models.embedders.values():
            embedder.requests.clear()

    models = KnownModels(before=forget)
    with mock.patch.object(in_process, "ConfiguredModels", return_value=models):
        allow_more(megabytes)
        return app.run([])


if __name__ == "__main__":
    work = {"model": _with_a_real_model, "command": _the_command}[sys.argv[1]]
    sys.exit(work(int(sys.argv[2])))

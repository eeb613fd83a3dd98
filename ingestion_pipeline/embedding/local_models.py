"""From an aspect's settings to a model that is ready to embed on this machine.

Finding and fetching files is `weights`, running them is an engine; this joins the two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ingestion_pipeline.embedding import weights
from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline.errors import BatchTooLargeError, OutOfMemoryError
from ingestion_pipeline.settings import AspectSettings


def load(model: AspectSettings, cache: Path, report: Callable[[str], None]) -> Embedder:
    """Fetch the model's files where they are missing, verify them, and load them.

    `report` hears of what takes time. Raises `WeightsError`, `DiskFullError`, `OutOfMemoryError`,
    and `SettingsError` where the settings do not suit the model.
    """
    from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder

    files = weights.fetch(
        model.model, revision=model.revision, path=model.path, cache=cache, report=report
    )
    report(f"Loading {model.model}.")
    try:
        embedder = SentenceTransformerEmbedder(
            files.folder,
            dimensions=model.dimensions,
            prefix=model.prefix,
            normalize=model.normalize,
            max_tokens=model.max_tokens,
        )
        # The first answer takes seconds more than any later one, and would spoil the canary's rate.
        embedder.embed(["warm-up"])
    except BatchTooLargeError as error:
        raise OutOfMemoryError(f"There is no memory to run {model.model}. {error}") from error
    except MemoryError as error:
        raise OutOfMemoryError(
            f"There is no memory to load {model.model}. Let other programs give some back."
        ) from error
    return embedder

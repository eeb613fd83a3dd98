"""Real local models behind the API: those that the project embeds with by default."""

from __future__ import annotations

from collections.abc import Callable

from ingestion_pipeline.embedding.embedder import Embedder


def load(report: Callable[[str], None]) -> dict[str, Embedder]:
    """Each model by its name on the hub, fetched where it is missing."""
    from ingestion_pipeline.embedding import local_models, weights
    from ingestion_pipeline.embedding.pinned_models import PINNED_MODELS
    from ingestion_pipeline.settings import AspectSettings

    cache = weights.default_cache()
    return {
        pin.name: local_models.load(
            AspectSettings(
                model=pin.name,
                revision=pin.revision,
                dimensions=pin.dimensions,
                max_tokens=pin.max_tokens,
            ),
            cache,
            report,
        )
        for pin in PINNED_MODELS.values()
    }

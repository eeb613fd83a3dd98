"""`ingest search`: the re-embedded catalogue answers a customer's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.orchestration.models import ConfiguredModels

if TYPE_CHECKING:
    from ingestion_pipeline.retrieval.search import Hit


def search(text: str, *, limit: int, as_json: bool) -> int:
    """Embed the text as each aspect's model would, and show the nearest products."""
    if not text.strip():
        raise InputError('There is nothing to search for.\n→ ingest search "a warm coat"')
    settings = prepare(report=terminal.note).settings
    with open_shop(settings) as shop:
        hits = hits_for(text, shop, limit)
    if as_json:
        terminal.print_json(as_dict(text, hits))
        return ExitCode.OK
    if not hits:
        terminal.say("Nothing was found: product_embeddings_v2 holds no vectors yet.")
        terminal.next_step("`ingest` fills it.")
        return ExitCode.OK
    show(hits)
    return ExitCode.OK


def hits_for(text: str, shop: Shop, limit: int) -> list[Hit]:
    """The best hits; none, and no model loaded, before anything was embedded."""
    from ingestion_pipeline.retrieval.search import search as nearest

    if not shop.is_prepared():
        return []
    models = ConfiguredModels().of(shop.settings, terminal.note)
    try:
        vectors = {
            aspect: model.embedder.embed([text]).vectors[0] for aspect, model in models.items()
        }
    finally:
        for model in models.values():
            model.close()
    return nearest(shop, vectors, limit=limit)


def show(hits: list[Hit]) -> None:
    """Hits in a table, best first, with the similarity of each aspect."""
    rows = [
        (
            f"{hit.score:.3f}",
            hit.product_id,
            hit.name + _variants(len(hit.variants)),
            *(_similarity(hit.parts.get(aspect)) for aspect in Aspect),
        )
        for hit in hits
    ]
    header = ("score", "id", "name", *(aspect.value for aspect in Aspect))
    terminal.table(header, rows, right={0, 1, 3, 4, 5})


def as_dict(text: str, hits: list[Hit]) -> dict[str, object]:
    """The search for JSON."""
    return {
        "text": text,
        "hits": [
            {
                "product_id": hit.product_id,
                "name": hit.name,
                "variants": list(hit.variants),
                "score": hit.score,
                "parts": {aspect.value: part for aspect, part in hit.parts.items()},
            }
            for hit in hits
        ],
    }


def _variants(number: int) -> str:
    return f" +{terminal.counted(number, 'variant')}" if number else ""


def _similarity(part: float | None) -> str:
    return "-" if part is None else f"{part:.3f}"

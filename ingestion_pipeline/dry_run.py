"""What a run would send: the texts, in which batches, and what they cost. Nothing is sent.

Reads the catalogue page by page as the work loop does, and fills batches from all of it. What a run
really sends may differ by what is edited, or embedded by another run, meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import BatchLimits, TextSize, batches
from ingestion_pipeline.ranges import ProductId, ProductIdRange
from ingestion_pipeline.reingestion import AspectModel, Catalogue, Store, TextKey
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline.work import StaleText


@dataclass(frozen=True)
class PlannedText:
    """A text as the model would get it, prefix apart; named by the first product that has it."""

    product_id: ProductId
    aspect: Aspect
    fingerprint: str
    text: str
    tokens: int


@dataclass(frozen=True)
class ModelPlan:
    """What one model would be asked: distinct texts, batches and tokens; `cost` in US dollars."""

    texts: int = 0
    batches: int = 0
    tokens: int = 0
    cost: Decimal | None = None


def planned_texts(
    range_: ProductIdRange,
    *,
    catalogue: Catalogue,
    store: Store,
    models: Mapping[Aspect, AspectModel],
    products_per_page: int,
) -> Iterator[PlannedText]:
    """Each distinct text of a range that no vector stands for yet, in the order of ids."""
    fingerprints = {aspect: model.fingerprint for aspect, model in models.items()}
    embedders = {model.fingerprint: model.embedder for model in models.values()}
    seen: set[TextKey] = set()
    rest: ProductIdRange | None = range_
    while rest is not None:
        page, rest = catalogue.page(rest, fingerprints, products_per_page)
        wanted: dict[TextKey, StaleText] = {}
        for stale in page:
            key = (stale.digest, stale.fingerprint)
            if key not in seen and cleaned(stale.text):
                wanted.setdefault(key, stale)
        for key in store.known_vectors(wanted):
            del wanted[key]
        seen |= wanted.keys()
        for fingerprint, embedder in embedders.items():
            of_model = [it for it in wanted.values() if it.fingerprint == fingerprint]
            texts = [cleaned(stale.text) for stale in of_model]
            counts = embedder.count_tokens(texts)
            for stale, text, tokens in zip(of_model, texts, counts, strict=True):
                yield PlannedText(stale.product_id, stale.aspect, fingerprint, text, tokens)


@dataclass
class Plan:
    """Adds up what would be sent, by fingerprint."""

    models: Mapping[Aspect, AspectModel]
    tokens_per_batch: int

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self._sizes: dict[str, list[TextSize]] = {
            model.fingerprint: [] for model in self.models.values()
        }

    def add(self, text: PlannedText) -> None:
        """Take one more text in."""
        self._sizes[text.fingerprint].append(TextSize(text.tokens, len(text.text.encode())))

    def by_fingerprint(self) -> dict[str, ModelPlan]:
        """What each model would be asked."""
        plans = {}
        for model in {model.fingerprint: model for model in self.models.values()}.values():
            sizes = self._sizes[model.fingerprint]
            limits = model.limits or BatchLimits(tokens=self.tokens_per_batch)
            plan = ModelPlan(
                len(sizes), len(batches(sizes, limits)), sum(size.tokens for size in sizes)
            )
            cost = model.price.of(plan.tokens) if model.price else None
            plans[model.fingerprint] = replace(plan, cost=cost)
        return plans

"""What a range comes to: its counts so far, and each commit's share of them (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ingestion_pipeline.ranges import ProductId
from ingestion_pipeline.work import AspectResult, Outcome, Spend, StaleText


@dataclass(frozen=True)
class RangeResult:
    """What became of a range. `products` were finished; the other counts are of aspects.

    `outdated` aspects changed under our hands in every pass and are left to the next run. `tokens`
    went to a model; `seconds` passed from claim to end, `model_seconds` were spent in models.
    """

    products: int = 0
    embedded: int = 0
    reused: int = 0
    empty: int = 0
    failed: int = 0
    truncated: int = 0
    outdated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0


@dataclass(frozen=True)
class RangeStep:
    """What one commit added: products that failed, vectors by their origin, and products' worth.

    A product's aspects may be committed in different batches: `products` counts each as its share,
    so that progress is even although no product of a page may be finished yet.
    """

    products: float
    failed_products: int
    embedded: int
    reused: int


@dataclass
class Tally:
    """What a range has come to so far, and what is unfinished of the pages that are read."""

    result: RangeResult = field(default_factory=RangeResult)
    aspects: dict[ProductId, int] = field(default_factory=dict)
    unfinished: dict[ProductId, int] = field(default_factory=dict)
    failed_products: set[ProductId] = field(default_factory=set)

    def begin(self, page: Sequence[StaleText]) -> None:
        """Take in a page that is about to be worked on."""
        for stale in page:
            self.aspects[stale.product_id] = self.aspects.get(stale.product_id, 0) + 1
            self.unfinished[stale.product_id] = self.unfinished.get(stale.product_id, 0) + 1

    def begin_again(self) -> None:
        """Forget what was unfinished: the range is read once more."""
        self.aspects.clear()
        self.unfinished.clear()
        self.result = replace(self.result, outdated=0)

    def add(
        self, written: Sequence[AspectResult], outdated: int, spends: Sequence[Spend]
    ) -> RangeStep:
        """Take in what a commit wrote, and how many of its results it did not."""
        finished = 0
        worth = 0.0
        failed_before = len(self.failed_products)
        counts = dict.fromkeys(Outcome, 0)
        for result in written:
            counts[result.outcome] += 1
            product_id = result.stale.product_id
            if result.outcome is Outcome.FAILED:
                self.failed_products.add(product_id)
            worth += 1 / self.aspects[product_id]
            self.unfinished[product_id] -= 1
            if not self.unfinished[product_id]:
                finished += 1
                del self.unfinished[product_id], self.aspects[product_id]
        before = self.result
        self.result = replace(
            before,
            products=before.products + finished,
            embedded=before.embedded + counts[Outcome.EMBEDDED],
            reused=before.reused + counts[Outcome.REUSED],
            empty=before.empty + counts[Outcome.EMPTY],
            failed=before.failed + counts[Outcome.FAILED],
            truncated=before.truncated + sum(_truncated(result) for result in written),
            outdated=before.outdated + outdated,
            tokens=before.tokens + sum(spend.tokens for spend in spends),
            model_seconds=before.model_seconds + sum(spend.seconds for spend in spends),
        )
        return RangeStep(
            products=worth,
            failed_products=len(self.failed_products) - failed_before,
            embedded=counts[Outcome.EMBEDDED],
            reused=counts[Outcome.REUSED],
        )


def _truncated(result: AspectResult) -> bool:
    return result.known is not None and result.known.truncated

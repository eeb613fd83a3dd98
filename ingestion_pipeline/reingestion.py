"""The work loop: re-embed what is stale in one range of products.

Claim the range, then page by page: read the stale texts, take over vectors that already stand for
the same text, embed the distinct rest in batches bounded by tokens, and commit each batch with its
ledger rows. No transaction is open while the model works, and whatever happens, running again
carries on from what is committed.

This module owns the Protocols of what it needs and knows neither PostgreSQL nor Dagster nor any
model; those are handed in. How a batch gets its answers is `asking`, how long one waits `patience`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ingestion_pipeline.asking import Asking
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import halved, token_budget_batches
from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    OutOfMemoryError,
    TooManyFailuresError,
)
from ingestion_pipeline.patience import Patience
from ingestion_pipeline.ranges import ProductId, ProductIdRange
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline.work import (
    AspectResult,
    KnownVector,
    Lease,
    Outcome,
    RunIdentity,
    Spend,
    StaleText,
)

MAX_PASSES = 3
"""Passes over a range whose texts are edited while it is worked on; the rest stays stale."""

TextKey = tuple[bytes, str]
"""A text digest and a fingerprint: what a vector stands for."""


class Catalogue(Protocol):
    """Where stale texts come from."""

    def page(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str], products: int
    ) -> tuple[list[StaleText], ProductIdRange | None]:
        """The stale texts of a range's first `products` products, and what is left of the range."""
        ...


class Store(Protocol):
    """Where vectors go."""

    def claim(self, range_: ProductIdRange, owner: RunIdentity, seconds: int) -> Lease:
        """Take the range, or raise `LeaseLostError` naming its holder."""
        ...

    def release(self, lease: Lease) -> None:
        """Give the range back."""
        ...

    def known_vectors(self, texts: Collection[TextKey]) -> dict[TextKey, KnownVector]:
        """Vectors in v2 that stand for some of these texts."""
        ...

    def commit(
        self, lease: Lease, results: Sequence[AspectResult], spend: Spend
    ) -> list[AspectResult]:
        """Write vectors, ledger, failures and spend in one transaction.

        Returns the results that were written; the others' text has changed or their product is
        gone. Raises `LeaseLostError` if the lease is no longer ours; nothing is then written. The
        same commit again, after a reply that was lost, changes nothing.
        """
        ...

    def failed_product_count(self) -> int:
        """Products that failed, in this run or before, and are not waiting to be tried again."""
        ...


@dataclass(frozen=True)
class AspectModel:
    """The model of an aspect, and the fingerprint of its vectors."""

    fingerprint: str
    embedder: Embedder


@dataclass(frozen=True)
class Pace:
    """Bounds on what the loop holds and sends at once, waits for, and puts up with.

    `lease_seconds` is how long a silent worker keeps its range, `retry_seconds` how long transient
    errors of one kind of work may go on; more failed products than `max_failed_products` (None: any
    number) end the run.
    """

    products_per_page: int
    tokens_per_batch: int
    lease_seconds: int
    retry_seconds: float = 120.0
    max_failed_products: int | None = None


@dataclass(frozen=True)
class RangeResult:
    """What became of a range. `products` were finished; the other counts are of aspects.

    `outdated` aspects changed under our hands in every pass and are left to the next run. `tokens`
    went to a model; `seconds` were spent on the whole range, `model_seconds` of them in models.
    `tokens_per_batch` is less than what the pace allows where memory did not suffice for that.
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
    tokens_per_batch: int = 0


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


def reingest(  # noqa: PLR0913 - everything that the loop touches is handed in
    range_: ProductIdRange,
    *,
    catalogue: Catalogue,
    store: Store,
    models: Mapping[Aspect, AspectModel],
    owner: RunIdentity,
    pace: Pace,
    report: Callable[[RangeStep], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RangeResult:
    """Bring every aspect of every product of `range_` up to date, or record why not.

    `report` hears of every commit, `say` of what takes time or takes less: waiting, smaller
    batches. Raises `LeaseLostError` when another run holds the range, `RangeFailedError` when this
    range cannot be stored or keeps meeting transient errors, and another `OutageError` when nothing
    more can succeed. What was committed before stays, and is not done again.
    """
    started = clock()
    patience = Patience(pace.retry_seconds, say, clock, sleep)
    lease = patience(lambda: store.claim(range_, owner, pace.lease_seconds))
    loop = _Loop(
        catalogue=catalogue,
        store=store,
        lease=lease,
        models=models,
        pace=pace,
        report=report,
        say=say,
        clock=clock,
        patience=patience,
        tokens_per_batch=pace.tokens_per_batch,
    )
    try:
        for _ in range(MAX_PASSES):
            loop.work_through(range_)
            if not loop.tally.result.outdated:
                break
    finally:
        store.release(lease)
    return replace(
        loop.tally.result, seconds=clock() - started, tokens_per_batch=loop.tokens_per_batch
    )


@dataclass
class _Tally:
    """What a range has come to so far, and what is unfinished of the page at hand."""

    result: RangeResult = field(default_factory=RangeResult)
    aspects: dict[ProductId, int] = field(default_factory=dict)
    unfinished: dict[ProductId, int] = field(default_factory=dict)
    failed_products: set[ProductId] = field(default_factory=set)

    def begin(self, page: Sequence[StaleText]) -> None:
        self.aspects = {}
        for stale in page:
            self.aspects[stale.product_id] = self.aspects.get(stale.product_id, 0) + 1
        self.unfinished = dict(self.aspects)

    def add(self, written: Sequence[AspectResult], outdated: int, spend: Spend) -> RangeStep:
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
            finished += self.unfinished[product_id] == 0
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
            tokens=before.tokens + spend.tokens,
            model_seconds=before.model_seconds + spend.seconds,
        )
        return RangeStep(
            products=worth,
            failed_products=len(self.failed_products) - failed_before,
            embedded=counts[Outcome.EMBEDDED],
            reused=counts[Outcome.REUSED],
        )


@dataclass
class _Loop:
    catalogue: Catalogue
    store: Store
    lease: Lease
    models: Mapping[Aspect, AspectModel]
    pace: Pace
    report: Callable[[RangeStep], None]
    say: Callable[[str], None]
    clock: Callable[[], float]
    patience: Patience
    tokens_per_batch: int
    tally: _Tally = field(default_factory=_Tally)

    def work_through(self, range_: ProductIdRange) -> None:
        """Take the whole range once, page by page."""
        self.tally.result = replace(self.tally.result, outdated=0)
        rest: ProductIdRange | None = range_
        while rest is not None:
            page, rest = self._page(rest)
            self._bring_up_to_date(page)

    def _page(self, range_: ProductIdRange) -> tuple[list[StaleText], ProductIdRange | None]:
        fingerprints = {aspect: model.fingerprint for aspect, model in self.models.items()}
        products = self.pace.products_per_page
        return self.patience(lambda: self.catalogue.page(range_, fingerprints, products))

    def _bring_up_to_date(self, page: Sequence[StaleText]) -> None:
        """Commit a result for every stale text of a page."""
        self.tally.begin(page)
        wanted: dict[TextKey, list[StaleText]] = {}
        settled: list[AspectResult] = []
        for stale in page:
            if cleaned(stale.text):
                wanted.setdefault((stale.digest, stale.fingerprint), []).append(stale)
            else:
                settled.append(AspectResult(stale, Outcome.EMPTY))
        known = self.patience(lambda: self.store.known_vectors(wanted))
        for key, vector in known.items():
            settled += [AspectResult(it, Outcome.REUSED, vector) for it in wanted.pop(key)]
        if settled:
            self._commit(settled, Spend())
        embedders = {model.fingerprint: model.embedder for model in self.models.values()}
        for fingerprint, embedder in embedders.items():
            groups = [group for (_, wants), group in wanted.items() if wants == fingerprint]
            self._embed(groups, fingerprint, embedder)

    def _embed(
        self, groups: Sequence[Sequence[StaleText]], fingerprint: str, embedder: Embedder
    ) -> None:
        """Embed the one text that each group shares, and commit batch by batch."""
        texts = [cleaned(group[0].text) for group in groups]
        tokens = embedder.count_tokens(texts)
        batches = deque(token_budget_batches(tokens, self.tokens_per_batch))
        while batches:
            batch = batches.popleft()
            started = self.clock()
            asking = Asking(embedder, [texts[position] for position in batch], self.patience)
            try:
                asking.ask()
            except BatchTooLargeError as error:
                self._ask_for_less([tokens[position] for position in batch], error)
                left = [
                    *(batch[number] for number in asking.unanswered),
                    *(position for later in batches for position in later),
                ]
                smaller = token_budget_batches(
                    [tokens[position] for position in left], self.tokens_per_batch
                )
                batches = deque([left[number] for number in group] for group in smaller)
            finally:
                # What has been answered is paid for, so it is kept whatever came of the rest.
                if results := _results(asking, [groups[position] for position in batch]):
                    spend = Spend(
                        fingerprint=fingerprint,
                        requests=asking.requests,
                        texts=len(asking.vectors) + len(asking.reasons),
                        tokens=asking.tokens,
                        seconds=self.clock() - started,
                    )
                    self._commit(results, spend)

    def _ask_for_less(self, batch: Sequence[int], error: BatchTooLargeError) -> None:
        """Halve the budget for the rest of the range."""
        if len(batch) == 1:
            raise OutOfMemoryError(
                f"There is no memory to embed one text of {batch[0]:,} tokens: {error} Free some, "
                "or lower max_tokens of the aspect's model."
            ) from error
        self.tokens_per_batch = halved(self.tokens_per_batch, batch)
        self.say(
            f"There is no memory for {len(batch)} texts at once: going on with at most "
            f"{self.tokens_per_batch:,} tokens a batch. work.tokens_per_batch sets it from the "
            "start."
        )

    def _commit(self, results: Sequence[AspectResult], spend: Spend) -> None:
        written = self.patience(lambda: self.store.commit(self.lease, results, spend))
        self.report(self.tally.add(written, len(results) - len(written), spend))
        if any(result.outcome is Outcome.FAILED for result in written):
            self._stop_at_too_many_failures()

    def _stop_at_too_many_failures(self) -> None:
        allowed = self.pace.max_failed_products
        if allowed is None:
            return
        failed = self.patience(self.store.failed_product_count)
        if failed > allowed:
            raise TooManyFailuresError(
                f"{failed:,} products have failed, more than work.max_failed_products = "
                f"{allowed:,}, so the run stops. `ingest failures` lists the reasons; once they "
                "are mended, `ingest failures --retry` goes on."
            )


def _results(asking: Asking, groups: Sequence[Sequence[StaleText]]) -> list[AspectResult]:
    """What is known of the texts that were asked for, for every aspect that shares them."""
    results = []
    for position, vector in asking.vectors.items():
        first, *others = groups[position]
        results.append(AspectResult(first, Outcome.EMBEDDED, vector))
        results += [AspectResult(stale, Outcome.REUSED, vector) for stale in others]
    for position, reason in asking.reasons.items():
        results += [
            AspectResult(stale, Outcome.FAILED, reason=reason) for stale in groups[position]
        ]
    return results


def _truncated(result: AspectResult) -> bool:
    return result.known is not None and result.known.truncated

"""The work loop: re-embed what is stale in one range of products.

Claim the range, then page by page: read the stale texts, take over vectors that already stand for
the same text, embed the distinct rest in batches bounded by tokens, and commit each batch with its
ledger rows. No transaction is open while the model works, and whatever happens, running again
carries on from what is committed.

This module owns the Protocols of what it needs and knows neither PostgreSQL nor Dagster nor any
model; those are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import token_budget_batches
from ingestion_pipeline.embedding.embedder import Embedder, Embeddings, validate
from ingestion_pipeline.errors import (
    LeaseLostError,
    PermanentTextError,
    RangeFailedError,
    TransientError,
)
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

MAX_ATTEMPTS = 5
"""Attempts at a batch or a commit that meets transient errors."""

FIRST_WAIT_SECONDS = 0.2
"""Doubled after each further attempt."""

TextKey = tuple[bytes, str]
"""A text digest and a fingerprint: what a vector stands for."""

T = TypeVar("T")


class Catalogue(Protocol):
    """Where stale texts come from."""

    def pages(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str], products: int
    ) -> Iterator[list[StaleText]]:
        """Pages of stale texts, `products` products each, in the order of ids."""
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
        gone. Raises `LeaseLostError` if the lease is no longer ours; nothing is then written.
        """
        ...


@dataclass(frozen=True)
class AspectModel:
    """The model of an aspect, and the fingerprint of its vectors."""

    fingerprint: str
    embedder: Embedder


@dataclass(frozen=True)
class Pace:
    """Bounds on what the loop holds and sends at once, and on its lease."""

    products_per_page: int
    tokens_per_batch: int
    lease_seconds: int


@dataclass(frozen=True)
class RangeResult:
    """What became of a range. `products` were finished; the other counts are of aspects.

    `outdated` aspects changed under our hands in every pass and are left to the next run. `tokens`
    went to a model; `seconds` were spent on the whole range, `model_seconds` of them in models.
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


def reingest(  # noqa: PLR0913 - everything that the loop touches is handed in
    range_: ProductIdRange,
    *,
    catalogue: Catalogue,
    store: Store,
    models: Mapping[Aspect, AspectModel],
    owner: RunIdentity,
    pace: Pace,
    report: Callable[[RangeStep], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RangeResult:
    """Bring every aspect of every product of `range_` up to date, or record why not.

    Raises `LeaseLostError` when another run holds the range, `RangeFailedError` when this range
    cannot be stored or keeps meeting transient errors, and another `OutageError` when nothing more
    can succeed. What was committed before stays, and is not done again.
    """
    started = clock()
    fingerprints = {aspect: model.fingerprint for aspect, model in models.items()}
    embedders = {model.fingerprint: model.embedder for model in models.values()}
    lease = _persistently(lambda: store.claim(range_, owner, pace.lease_seconds), sleep)
    loop = _Loop(store, lease, embedders, pace, report, clock, sleep)

    def work_through() -> None:
        loop.tally.result = replace(loop.tally.result, outdated=0)
        for page in catalogue.pages(range_, fingerprints, pace.products_per_page):
            loop.bring_up_to_date(page)

    try:
        for _ in range(MAX_PASSES):
            # A read that fails is begun again from the first page: what is committed is not stale.
            _persistently(work_through, sleep)
            if not loop.tally.result.outdated:
                break
    finally:
        store.release(lease)
    return replace(loop.tally.result, seconds=clock() - started)


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
    store: Store
    lease: Lease
    embedders: Mapping[str, Embedder]
    pace: Pace
    report: Callable[[RangeStep], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    tally: _Tally = field(default_factory=_Tally)

    def bring_up_to_date(self, page: Sequence[StaleText]) -> None:
        """Commit a result for every stale text of a page."""
        self.tally.begin(page)
        wanted: dict[TextKey, list[StaleText]] = {}
        settled: list[AspectResult] = []
        for stale in page:
            if cleaned(stale.text):
                wanted.setdefault((stale.digest, stale.fingerprint), []).append(stale)
            else:
                settled.append(AspectResult(stale, Outcome.EMPTY))
        known = _persistently(lambda: self.store.known_vectors(wanted), self.sleep)
        for key, vector in known.items():
            settled += [AspectResult(it, Outcome.REUSED, vector) for it in wanted.pop(key)]
        if settled:
            self._commit(settled, Spend())
        for fingerprint, embedder in self.embedders.items():
            groups = [group for (_, wants), group in wanted.items() if wants == fingerprint]
            self._embed(groups, fingerprint, embedder)

    def _embed(
        self, groups: Sequence[Sequence[StaleText]], fingerprint: str, embedder: Embedder
    ) -> None:
        """Embed the one text that each group shares, and commit batch by batch."""
        texts = [cleaned(group[0].text) for group in groups]
        tokens = embedder.count_tokens(texts)
        for batch in token_budget_batches(tokens, self.pace.tokens_per_batch):
            started = self.clock()
            answer = _Answer(embedder, self.sleep)
            answer.ask([texts[position] for position in batch])
            spend = Spend(
                fingerprint=fingerprint,
                requests=answer.requests,
                texts=len(batch),
                tokens=answer.tokens,
                seconds=self.clock() - started,
            )
            results = [
                result
                for position, vector in zip(batch, answer.vectors, strict=True)
                for result in _results(groups[position], vector)
            ]
            self._commit(results, spend)

    def _commit(self, results: Sequence[AspectResult], spend: Spend) -> None:
        written = _persistently(lambda: self.store.commit(self.lease, results, spend), self.sleep)
        self.report(self.tally.add(written, len(results) - len(written), spend))


@dataclass
class _Answer:
    """A vector, or the reason why there is none, for each text of a batch, in its order."""

    embedder: Embedder
    sleep: Callable[[float], None]
    vectors: list[KnownVector | str] = field(default_factory=list)
    requests: int = 0
    tokens: int = 0

    def ask(self, texts: Sequence[str], *, again: bool = False) -> None:
        """Append the answers to `texts`; a text that the model cannot take is found by halving."""
        try:
            embeddings, bad = _persistently(lambda: self._request(texts), self.sleep)
        except PermanentTextError as error:
            if len(texts) == 1:
                self.vectors.append(str(error))
                return
            middle = len(texts) // 2
            self.ask(texts[:middle])
            self.ask(texts[middle:])
            return
        for position, text in enumerate(texts):
            if position not in bad:
                self.vectors.append(
                    KnownVector(
                        embeddings.vectors[position],
                        embeddings.tokens[position],
                        embeddings.truncated[position],
                    )
                )
            elif again:
                self.vectors.append("The model's vector is zero or not finite, twice.")
            else:
                self.ask([text], again=True)

    def _request(self, texts: Sequence[str]) -> tuple[Embeddings, set[int]]:
        self.requests += 1
        embeddings = self.embedder.embed(texts)
        self.tokens += sum(embeddings.tokens)
        bad = validate(embeddings, expected_count=len(texts), dimensions=self.embedder.dimensions)
        return embeddings, set(bad)


def _results(group: Sequence[StaleText], answer: KnownVector | str) -> list[AspectResult]:
    if isinstance(answer, str):
        return [AspectResult(stale, Outcome.FAILED, reason=answer) for stale in group]
    first, *others = group
    return [
        AspectResult(first, Outcome.EMBEDDED, answer),
        *(AspectResult(stale, Outcome.REUSED, answer) for stale in others),
    ]


def _truncated(result: AspectResult) -> bool:
    return result.known is not None and result.known.truncated


def _persistently(action: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """Do `action`, again after a wait when it meets a transient error, within bounds."""
    wait = FIRST_WAIT_SECONDS
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return action()
        except LeaseLostError:
            raise
        except TransientError as error:
            if attempt == MAX_ATTEMPTS:
                raise RangeFailedError(f"Gave up after {attempt} attempts. {error}") from error
        sleep(wait)
        wait *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")

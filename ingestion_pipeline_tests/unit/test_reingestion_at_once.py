"""The work loop where a model takes many requests at once: filled batches, and nothing twice.

The catalogue and the store are those of `test_reingestion`, cut into ranges.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import BatchLimits
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    LeaseLostError,
    OutageError,
    RangeFailedError,
    TransientError,
)
from ingestion_pipeline.in_flight import LOCAL, Lane
from ingestion_pipeline.ranges import EVERYTHING, ProductIdRange
from ingestion_pipeline.reingestion import (
    AspectModel,
    Pace,
    RangeEnd,
    reingest_ranges,
)
from ingestion_pipeline.tally import RangeStep
from ingestion_pipeline.work import Lease, RunIdentity, StaleText
from ingestion_pipeline_tests.shops import KnownEmbedder
from ingestion_pipeline_tests.unit.test_reingestion import DIMENSIONS, FINGERPRINTS, Shop, Texts

SECONDS = 10.0
AT_ONCE = 4


@dataclass
class RangedShop(Shop):
    """A shop whose ranges are those of its integer ids; counts what is open."""

    open: int = 0
    most_open: int = 0

    def claim(self, _: ProductIdRange, owner: RunIdentity, seconds: int) -> Lease:
        self._maybe_fail("claim")
        self.claimed.append(owner)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return Lease(owner, len(self.claimed), seconds, None)  # type: ignore[arg-type]

    def release(self, lease: Lease) -> None:
        super().release(lease)
        self.open -= 1

    def page(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str], products: int
    ) -> tuple[list[StaleText], ProductIdRange | None]:
        self._maybe_fail("page")
        first, end = range_.first or 0, range_.end or 10**9
        inside = {key: text for key, text in self.texts.items() if first <= key[0] < end}  # type: ignore[operator]
        if not inside:
            return [], None
        texts, rest = Shop.page(Shop(inside, self.settled), EVERYTHING, fingerprints, products)
        return texts, ProductIdRange(rest.first, range_.end) if rest else None


@dataclass
class Endpoint:
    """Answers when it may, so that a test sees what is asked for meanwhile."""

    embedders: dict[str, KnownEmbedder] = field(
        default_factory=lambda: {name: KnownEmbedder(size) for name, size in DIMENSIONS.items()}
    )
    seconds: float = 0.005
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    before: Callable[[Sequence[str]], None] = lambda _: None

    @property
    def texts(self) -> list[str]:
        return [text for embedder in self.embedders.values() for text in embedder.texts]

    def answer(self, texts: Sequence[str], right: Embeddings) -> Embeddings:
        with self._counted():
            time.sleep(self.seconds)
            self.before(texts)
        return right

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self.lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            yield
        finally:
            with self.lock:
                self.at_work -= 1


def _work(  # noqa: PLR0913 - what a test varies
    shop: RangedShop,
    endpoint: Endpoint,
    *,
    ranges: int,
    products: int = 10,
    texts_per_request: int = 5,
    ranges_at_once: int = 8,
    products_per_page: int = 4,
    steps: list[RangeStep] | None = None,
    local: str | None = None,
) -> list[RangeEnd]:
    """Work on so many ranges of so many ids each; the model `local` is one of this process."""
    for name, embedder in endpoint.embedders.items():
        if name != local:
            embedder.answer = endpoint.answer
    remote = Lane("endpoint", lambda: AT_ONCE, threads=True)
    limits = BatchLimits(texts=texts_per_request, padded=False)
    return list(
        reingest_ranges(
            [ProductIdRange(it * products, (it + 1) * products) for it in range(ranges)],
            catalogue=shop,
            store=shop,
            models={
                aspect: AspectModel(
                    name,
                    endpoint.embedders[name],
                    limits=limits,
                    lane=LOCAL if name == local else remote,
                )
                for aspect, name in FINGERPRINTS.items()
            },
            owner=lambda range_: RunIdentity("run-1", "invocation-1", str(range_.first)),
            pace=Pace(
                products_per_page,
                tokens_per_batch=1_000,
                lease_seconds=60,
                retry_seconds=1,
                ranges_at_once=ranges_at_once,
            ),
            report=(steps if steps is not None else []).append,
        )
    )


def _texts(products: int, distinct: int | None = None) -> Texts:
    return {
        (id_, aspect): f"{id_ % (distinct or products)} {aspect}"
        for id_ in range(products)
        for aspect in Aspect
    }


def test_as_many_batches_as_the_lane_allows_are_at_work_and_everything_lands() -> None:
    shop, endpoint = RangedShop(_texts(100)), Endpoint()
    steps: list[RangeStep] = []
    ends = _work(shop, endpoint, ranges=10, steps=steps)
    assert endpoint.most_at_work == AT_ONCE
    assert sorted(end.range_.first for end in ends) == list(range(0, 100, 10))  # type: ignore[type-var]
    assert all(end.left is None and end.result.products == 10 for end in ends)
    assert len(shop.settled) == 300
    assert len(endpoint.texts) == len(set(endpoint.texts)) == 300
    assert sum(step.products for step in steps) == pytest.approx(100)
    assert shop.open == 0


def test_batches_are_filled_across_pages_and_ranges() -> None:
    shop, endpoint = RangedShop(_texts(40)), Endpoint()
    _work(shop, endpoint, ranges=20, products=2, texts_per_request=20, ranges_at_once=20)
    assert [len(it) for it in endpoint.embedders["large"].requests] == [20, 20, 20, 20]
    assert [len(it) for it in endpoint.embedders["small"].requests] == [20, 20]


def test_no_more_ranges_are_open_than_allowed() -> None:
    shop = RangedShop(_texts(40))
    _work(shop, Endpoint(), ranges=20, products=2, texts_per_request=20, ranges_at_once=3)
    assert shop.most_open == 3


def test_a_text_on_its_way_is_not_asked_for_again_by_another_page_or_range() -> None:
    shop, endpoint = RangedShop(_texts(60, distinct=7)), Endpoint(seconds=0.05)
    ends = _work(shop, endpoint, ranges=6)
    assert sorted(endpoint.texts) == sorted(
        {f"{n} {aspect}" for n in range(7) for aspect in Aspect}
    )
    assert sum(end.result.embedded for end in ends) == 21
    assert sum(end.result.reused for end in ends) == 180 - 21
    assert len(shop.settled) == 180


def test_a_range_that_cannot_be_stored_is_left_and_its_neighbours_are_done() -> None:
    class Refusing(RangedShop):
        def commit(self, lease: Lease, *rest: object) -> list[object]:  # type: ignore[override]
            if lease.owner.range_key == "20":
                raise RangeFailedError("no such row")
            return super().commit(lease, *rest)  # type: ignore[arg-type, return-value]

    shop, endpoint = Refusing(_texts(60)), Endpoint()
    ends = {end.range_.first: end for end in _work(shop, endpoint, ranges=6)}
    assert isinstance(ends[20].left, RangeFailedError)
    assert all(end.left is None for first, end in ends.items() if first != 20)
    assert {id_ for id_, _ in shop.settled} == set(range(60)) - set(range(20, 30))
    assert shop.open == 0


def test_a_range_that_another_run_holds_is_left_to_it() -> None:
    shop = RangedShop(_texts(30), faults={"claim": [LeaseLostError("held by run-0")]})
    ends = _work(shop, Endpoint(), ranges=3)
    assert isinstance(ends[0].left, LeaseLostError)
    assert len(shop.settled) == 60


def test_what_is_at_work_when_an_outage_comes_is_still_kept() -> None:
    shop, endpoint = RangedShop(_texts(100)), Endpoint(seconds=0.02)
    outage, asked = OutageError("no quota is left"), threading.Event()

    def fail_once(_: Sequence[str]) -> None:
        if endpoint.most_at_work == AT_ONCE and not asked.is_set():
            asked.set()
            raise outage

    endpoint.before = fail_once
    with pytest.raises(OutageError) as stopped:
        _work(shop, endpoint, ranges=10)
    assert stopped.value is outage
    answered = endpoint.texts
    kept = {settled.stale.text for settled in shop.settled.values()}
    refused = set(answered) - kept
    assert len(refused) == 5, "the batch that met the outage, and no other"
    assert len(answered) < 300
    assert shop.open == 0


def test_a_transient_error_of_one_batch_keeps_no_other_waiting() -> None:
    shop, endpoint = RangedShop(_texts(50)), Endpoint()
    failed: list[bool] = []

    def fail_twice(_: Sequence[str]) -> None:
        if len(failed) < 2:
            failed.append(True)
            raise TransientError("busy")

    endpoint.before = fail_twice
    ends = _work(shop, endpoint, ranges=5)
    assert all(end.left is None for end in ends)
    assert len(shop.settled) == 150
    assert sum(spend.requests for _, spend in shop.commits) == 30 + 2


def test_the_seconds_on_record_are_those_in_which_anything_was_at_work() -> None:
    shop, endpoint = RangedShop(_texts(100)), Endpoint(seconds=0.05)
    began = time.monotonic()
    _work(shop, endpoint, ranges=10)
    took = time.monotonic() - began
    recorded = sum(spend.seconds for _, spend in shop.commits)
    assert 60 / AT_ONCE * 0.05 * 0.9 <= recorded <= took


def test_a_model_of_this_process_works_beside_an_endpoint_one_batch_at_a_time() -> None:
    shop, endpoint, here = RangedShop(_texts(60)), Endpoint(), Endpoint(seconds=0.001)
    endpoint.embedders["small"].answer = here.answer
    ends = _work(shop, endpoint, ranges=6, local="small")
    assert all(end.left is None for end in ends)
    assert len(shop.settled) == 180
    assert here.most_at_work == 1
    assert endpoint.most_at_work == AT_ONCE

"""The work loop over a catalogue and a store in memory: what it asks, retries, keeps and reports.

What PostgreSQL has to say about it is tested in `database/test_reingestion_on_postgres.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ingestion_pipeline.asking import CONTROL_TEXT
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    ConnectionLostError,
    DatabaseUnavailableError,
    LeaseLostError,
    OutageError,
    OutOfMemoryError,
    PermanentTextError,
    RangeFailedError,
    TooManyFailuresError,
    TransientError,
    WeightsError,
)
from ingestion_pipeline.patience import LONGEST_PAUSE_SECONDS
from ingestion_pipeline.ranges import EVERYTHING, ProductId, ProductIdRange
from ingestion_pipeline.reingestion import (
    MAX_PASSES,
    AspectModel,
    Pace,
    TextKey,
    reingest,
)
from ingestion_pipeline.tally import RangeResult, RangeStep
from ingestion_pipeline.texts import text_digest
from ingestion_pipeline.work import (
    AspectResult,
    KnownVector,
    Lease,
    Outcome,
    RunIdentity,
    Spend,
    StaleText,
)
from ingestion_pipeline_tests.shops import KnownEmbedder, vector_of

FINGERPRINTS = {Aspect.DESCRIPTION: "large", Aspect.USAGE: "large", Aspect.FEATURE: "small"}
DIMENSIONS = {"large": 8, "small": 4}
RETRY_SECONDS = 30
OWNER = RunIdentity("run-1", "invocation-1", "*:*")

Texts = dict[tuple[ProductId, Aspect], str | None]


@dataclass
class Shop:
    """A catalogue and a store of texts and vectors in two dictionaries.

    `faults` are raised by the next calls of a method, one a call. `meanwhile` runs before each
    commit, as an editor's transaction would.
    """

    texts: Texts
    settled: dict[tuple[ProductId, Aspect], AspectResult] = field(default_factory=dict)
    commits: list[tuple[list[AspectResult], Spend]] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    meanwhile: Callable[[Texts], None] = lambda _: None
    claimed: list[RunIdentity] = field(default_factory=list)
    released: list[Lease] = field(default_factory=list)

    def _maybe_fail(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop(0)

    def page(
        self, range_: ProductIdRange, fingerprints: Mapping[Aspect, str], products: int
    ) -> tuple[list[StaleText], ProductIdRange | None]:
        self._maybe_fail("page")
        ids = sorted({id_ for id_, _ in self.texts}, key=str)
        ids = ids[0 if range_.first is None else ids.index(range_.first) :]
        rest = ProductIdRange(ids[products], None) if len(ids) > products else None
        texts = [
            StaleText(id_, aspect, fingerprints[aspect], text, text_digest(text))
            for id_ in ids[:products]
            for aspect in Aspect
            if (id_, aspect) in self.texts
            for text in [self.texts[id_, aspect]]
            if not self._is_settled(id_, aspect, text_digest(text))
        ]
        return texts, rest

    def _is_settled(self, id_: ProductId, aspect: Aspect, digest: bytes) -> bool:
        known = self.settled.get((id_, aspect))
        return known is not None and known.stale.digest == digest

    def claim(self, range_: ProductIdRange, owner: RunIdentity, seconds: int) -> Lease:
        assert range_ == EVERYTHING
        self._maybe_fail("claim")
        self.claimed.append(owner)
        return Lease(owner, len(self.claimed), seconds, datetime.now(UTC))

    def renew(self, lease: Lease) -> None:
        assert lease not in self.released
        self._maybe_fail("renew")

    def record(self, owner: RunIdentity, spend: Spend) -> None:
        assert owner in self.claimed
        self.commits.append(([], spend))

    def release(self, lease: Lease) -> None:
        self.released.append(lease)

    def known_vectors(self, texts: Collection[TextKey]) -> dict[TextKey, KnownVector]:
        self._maybe_fail("known_vectors")
        return {
            key: result.known
            for result in self.settled.values()
            if result.known
            for key in [(result.stale.digest, result.stale.fingerprint)]
            if key in texts
        }

    def commit(
        self, lease: Lease, results: Sequence[AspectResult], *spends: Spend
    ) -> list[AspectResult]:
        assert lease not in self.released
        self._maybe_fail("commit")
        self.meanwhile(self.texts)
        written = [
            result
            for result in results
            for key in [(result.stale.product_id, result.stale.aspect)]
            if key in self.texts and text_digest(self.texts[key]) == result.stale.digest
        ]
        for result in written:
            self.settled[result.stale.product_id, result.stale.aspect] = result
        self.commits += [(written, spend) for spend in spends]
        return written

    def failed_product_count(self) -> int:
        self._maybe_fail("failed_product_count")
        failed = [it for it in self.settled.values() if it.outcome is Outcome.FAILED]
        return len({result.stale.product_id for result in failed})

    def outcome(self, id_: ProductId, aspect: Aspect = Aspect.DESCRIPTION) -> Outcome:
        return self.settled[id_, aspect].outcome


@dataclass
class Worker:
    """Re-ingests a shop and notes what was embedded, awaited and reported."""

    shop: Shop
    embedders: dict[str, KnownEmbedder] = field(
        default_factory=lambda: {
            name: KnownEmbedder(dimensions) for name, dimensions in DIMENSIONS.items()
        }
    )
    waits: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    max_failed_products: int | None = None
    steps: list[RangeStep] = field(default_factory=list)
    ticks: int = 0

    @property
    def large(self) -> KnownEmbedder:
        return self.embedders["large"]

    def work(self, tokens_per_batch: int = 10_000, products_per_page: int = 100) -> RangeResult:
        return reingest(
            EVERYTHING,
            catalogue=self.shop,
            store=self.shop,
            models={
                aspect: AspectModel(name, self.embedders[name])
                for aspect, name in FINGERPRINTS.items()
            },
            owner=OWNER,
            pace=Pace(
                products_per_page,
                tokens_per_batch,
                lease_seconds=60,
                retry_seconds=RETRY_SECONDS,
                max_failed_products=self.max_failed_products,
            ),
            report=self.steps.append,
            say=self.said.append,
            clock=self._clock,
            sleep=self.waits.append,
        )

    def _clock(self) -> float:
        self.ticks += 1
        return float(self.ticks)


def _descriptions(*texts: str | None) -> Texts:
    return {(number, Aspect.DESCRIPTION): text for number, text in enumerate(texts, start=1)}


def test_every_aspect_is_embedded_by_its_own_model_and_counted() -> None:
    shop = Shop({(id_, aspect): f"{id_} {aspect}" for id_ in ("a", "b") for aspect in Aspect})
    worker = Worker(shop)
    result = worker.work()
    assert sorted(worker.embedders["large"].texts) == [
        "a description", "a usage", "b description", "b usage",
    ]  # fmt: skip
    assert sorted(worker.embedders["small"].texts) == ["a feature", "b feature"]
    assert (result.products, result.embedded, result.reused, result.tokens) == (2, 6, 0, 12)
    for (id_, aspect), settled in shop.settled.items():
        assert settled.known is not None
        dimensions = DIMENSIONS[FINGERPRINTS[aspect]]
        assert np.array_equal(settled.known.vector, vector_of(f"{id_} {aspect}", dimensions))


def test_one_text_goes_to_a_model_once_for_all_products_and_aspects_that_share_it() -> None:
    texts: Texts = {(id_, aspect): "the same" for id_ in range(20) for aspect in Aspect}
    worker = Worker(Shop(texts))
    result = worker.work(products_per_page=3)
    assert worker.embedders["large"].texts == ["the same"]
    assert worker.embedders["small"].texts == ["the same"]
    assert (result.embedded, result.reused, result.products) == (2, 58, 20)


def test_a_model_sees_the_cleaned_text_and_the_ledger_the_digest_of_the_raw_one() -> None:
    shop = Shop(_descriptions("<p>Käse</p> &amp;  Brot"))
    worker = Worker(shop)
    worker.work()
    assert worker.large.texts == ["Käse & Brot"]
    digest = shop.settled[1, Aspect.DESCRIPTION].stale.digest
    assert digest == text_digest("<p>Käse</p> &amp;  Brot")


@pytest.mark.parametrize("nothing", [None, "", " \n", "<br>", "&nbsp;", "\x00"])
def test_a_text_of_nothing_is_settled_as_empty_and_never_sent(nothing: str | None) -> None:
    shop = Shop(_descriptions(nothing))
    worker = Worker(shop)
    result = worker.work()
    assert shop.outcome(1) is Outcome.EMPTY
    assert shop.settled[1, Aspect.DESCRIPTION].known is None
    assert worker.large.requests == []
    assert (result.products, result.empty, result.embedded) == (1, 1, 0)


def test_a_second_run_asks_for_nothing_and_commits_nothing() -> None:
    shop = Shop(_descriptions("one", None, "three"))
    Worker(shop).work()
    commits = len(shop.commits)
    worker = Worker(shop)
    result = worker.work()
    assert worker.large.requests == []
    assert len(shop.commits) == commits
    assert replace(result, seconds=0.0) == RangeResult()


def test_batches_keep_to_the_token_budget_and_are_committed_one_by_one() -> None:
    shop = Shop(_descriptions(*(f"text {number} of five tokens" for number in range(10))))
    worker = Worker(shop)
    worker.work(tokens_per_batch=20)
    assert [len(request) for request in worker.large.requests] == [4, 4, 2]
    assert [len(written) for written, _ in shop.commits] == [4, 4, 2]


def test_each_commit_carries_what_its_own_batch_took() -> None:
    shop = Shop({**_descriptions("one two", "three four", None), (4, Aspect.FEATURE): "five"})
    worker = Worker(shop)
    worker.work()
    spends = [spend for _, spend in shop.commits]
    assert [(it.fingerprint, it.requests, it.texts, it.tokens) for it in spends] == [
        (None, 0, 0, 0),
        ("large", 1, 2, 4),
        ("small", 1, 1, 1),
    ]
    assert all(spend.seconds > 0 for spend in spends[1:])
    assert len({spend.batch for spend in spends}) == 3


def test_the_steps_that_are_reported_add_up_to_the_result() -> None:
    texts: Texts = {(id_, aspect): f"{id_ % 7} {aspect}" for id_ in range(30) for aspect in Aspect}
    texts[3, Aspect.USAGE] = "refused"
    texts[4, Aspect.DESCRIPTION] = None
    worker = Worker(Shop(texts))
    worker.large.refused = {"refused": "no"}
    result = worker.work(tokens_per_batch=6, products_per_page=4)
    assert sum(step.products for step in worker.steps) == result.products == 30
    assert sum(step.failed_products for step in worker.steps) == result.failed == 1
    assert sum(step.embedded for step in worker.steps) == result.embedded
    assert sum(step.reused for step in worker.steps) == result.reused
    assert result.embedded + result.reused + result.empty + result.failed == 90
    assert result.seconds > 0


def test_cut_texts_are_counted() -> None:
    worker = Worker(Shop(_descriptions("short", "long long")))
    worker.large.answer = lambda texts, right: Embeddings(
        right.vectors, right.tokens, ["long" in text for text in texts]
    )
    assert worker.work().truncated == 1


@pytest.mark.parametrize("poison", range(16))
def test_one_refused_text_is_found_by_halving_and_its_neighbours_land(poison: int) -> None:
    shop = Shop(_descriptions(*(f"text {number:02d}" for number in range(16))))
    worker = Worker(shop)
    worker.large.refused = {f"text {poison:02d}": "The model refuses this."}
    result = worker.work()
    assert (result.embedded, result.failed, result.products) == (15, 1, 16)
    assert shop.outcome(poison + 1) is Outcome.FAILED
    assert shop.settled[poison + 1, Aspect.DESCRIPTION].reason == "The model refuses this."
    for (id_, _), settled in shop.settled.items():
        if settled.known:
            assert isinstance(id_, int)
            assert np.array_equal(settled.known.vector, vector_of(f"text {id_ - 1:02d}", 8))
    requests = worker.large.requests
    assert len(requests) - 1 <= 6  # log2(16) + 2 more than without the text
    assert [spend.requests for _, spend in shop.commits] == [len(requests)]
    assert worker.waits == []


def test_every_text_refused_fails_each_and_ends() -> None:
    shop = Shop(_descriptions(*(f"text {number}" for number in range(8))))
    worker = Worker(shop)
    worker.large.refused = {"text": "no"}
    result = worker.work()
    assert (result.failed, result.embedded) == (8, 0)
    assert len(worker.large.requests) <= 8 * 4  # log2(8) + 1 for each


def test_a_refused_text_shared_by_products_fails_for_each_of_them_at_one_asking() -> None:
    shop = Shop(_descriptions("refused", "refused", "fine"))
    worker = Worker(shop)
    worker.large.refused = {"refused": "no"}
    result = worker.work()
    assert (result.failed, result.embedded) == (2, 1)
    assert worker.large.requests == [["refused", "fine"], ["refused"], ["fine"]]


def _with_vector(bad: float, times: int) -> Callable[[Sequence[str], Embeddings], Embeddings]:
    """A model that answers "bad" with a vector of `bad`, the first few times."""
    left = [times]

    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        if "bad" in texts and left[0]:
            left[0] -= 1
            right.vectors[list(texts).index("bad")] = bad
        return right

    return answer


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_vector_that_is_unusable_once_is_asked_for_again_alone(value: float) -> None:
    shop = Shop(_descriptions("first", "bad", "last"))
    worker = Worker(shop)
    worker.large.answer = _with_vector(value, times=1)
    result = worker.work()
    assert (result.embedded, result.failed) == (3, 0)
    assert worker.large.requests == [["first", "bad", "last"], ["bad"]]
    for id_, text in enumerate(["first", "bad", "last"], start=1):
        known = shop.settled[id_, Aspect.DESCRIPTION].known
        assert known is not None
        assert np.array_equal(known.vector, vector_of(text, 8))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_vector_that_is_unusable_twice_fails_its_product_and_no_neighbour(value: float) -> None:
    shop = Shop(_descriptions("first", "bad", "last"))
    worker = Worker(shop)
    worker.large.answer = _with_vector(value, times=99)
    result = worker.work()
    assert (result.embedded, result.failed) == (2, 1)
    assert worker.large.requests == [["first", "bad", "last"], ["bad"], [CONTROL_TEXT]]
    assert "zero or not finite" in (shop.settled[2, Aspect.DESCRIPTION].reason or "")
    assert shop.settled[2, Aspect.DESCRIPTION].known is None


def _one_short(_: Sequence[str], right: Embeddings) -> Embeddings:
    return Embeddings(right.vectors[:-1], right.tokens[:-1], right.truncated[:-1])


def _one_dimension_less(_: Sequence[str], right: Embeddings) -> Embeddings:
    return Embeddings(right.vectors[:, :-1], right.tokens, right.truncated)


def _all_zero(_: Sequence[str], right: Embeddings) -> Embeddings:
    return Embeddings(np.zeros_like(right.vectors), right.tokens, right.truncated)


def _choking(_: Sequence[str], __: Embeddings) -> Embeddings:
    raise IndexError("out of range")


@pytest.mark.parametrize("answer", [_one_short, _one_dimension_less, _all_zero, _choking])
def test_a_model_without_one_usable_answer_is_at_fault_and_no_product(
    answer: Callable[[Sequence[str], Embeddings], Embeddings],
) -> None:
    shop = Shop(_descriptions("one", "two", "three"))
    worker = Worker(shop)
    worker.large.answer = answer
    with pytest.raises(RangeFailedError, match="no product is to blame"):
        worker.work()
    assert shop.settled == {}
    assert [spend.requests for _, spend in shop.commits] == [len(worker.large.requests)]
    assert worker.large.requests[-1] == [CONTROL_TEXT]
    assert len(worker.large.requests) <= 5
    assert len(shop.released) == 1


@pytest.mark.parametrize("answer", [_one_short, _one_dimension_less, _all_zero, _choking])
@pytest.mark.parametrize("texts", [("two",), ("one", "two", "three", "four")])
def test_a_text_that_spoils_every_answer_it_is_in_fails_alone(
    texts: tuple[str, ...],
    answer: Callable[[Sequence[str], Embeddings], Embeddings],
) -> None:
    shop = Shop(_descriptions(*texts))
    worker = Worker(shop)
    worker.large.answer = lambda sent, right: answer(sent, right) if "two" in sent else right
    result = worker.work()
    poison = texts.index("two") + 1
    assert shop.outcome(poison) is Outcome.FAILED
    if answer is not _all_zero:  # there the neighbours' vectors are zero, too, and asked for again
        assert (result.embedded, result.failed) == (len(texts) - 1, 1)


def test_rows_in_another_order_are_put_in_the_order_of_their_texts() -> None:
    shop = Shop(_descriptions("one", "two", "three"))
    worker = Worker(shop)
    worker.large.answer = lambda _, right: Embeddings(
        right.vectors[[2, 0, 1]], right.tokens, right.truncated, indexes=[2, 0, 1]
    )
    worker.work()
    for id_, text in enumerate(["one", "two", "three"], start=1):
        known = shop.settled[id_, Aspect.DESCRIPTION].known
        assert known is not None
        assert np.array_equal(known.vector, vector_of(text, 8))


def test_a_batch_for_which_there_is_no_memory_is_asked_for_in_smaller_ones() -> None:
    shop = Shop(_descriptions(*(f"text {number:02d}" for number in range(16))))
    worker = Worker(shop)

    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        if len(texts) > 3:
            raise BatchTooLargeError("out of memory")
        return right

    worker.large.answer = answer
    result = worker.work(tokens_per_batch=1_000)
    assert (result.embedded, result.failed) == (16, 0)
    assert [len(request) for request in worker.large.requests] == [16, 8, 4, *[2] * 8]
    assert len(worker.said) == 3
    assert "at most 4 tokens a batch" in worker.said[-1]


def test_a_text_for_which_there_is_no_memory_is_an_outage_and_not_its_fault() -> None:
    shop = Shop(_descriptions("one", "two"))
    worker = Worker(shop)

    def answer(_: Sequence[str], __: Embeddings) -> Embeddings:
        raise MemoryError

    worker.large.answer = answer
    with pytest.raises(OutOfMemoryError, match="max_tokens"):
        worker.work()
    assert shop.settled == {}


def test_what_was_answered_before_an_outage_in_the_middle_of_a_batch_is_kept() -> None:
    shop = Shop(_descriptions("aa", "bb", "cc", "dd"))
    worker = Worker(shop)
    outage = OutageError("quota")

    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        if "dd" in texts:
            raise PermanentTextError("no") if len(texts) > 1 else outage
        if "cc" in texts:
            raise outage
        return right

    worker.large.answer = answer
    with pytest.raises(OutageError):
        worker.work()
    assert set(shop.settled) == {(1, Aspect.DESCRIPTION), (2, Aspect.DESCRIPTION)}


def test_more_failed_products_than_allowed_stop_the_range_and_keep_what_is_committed() -> None:
    shop = Shop(_descriptions("bad 1", "good 2", "bad 3", "good 4"))
    worker = Worker(shop, max_failed_products=1)
    worker.large.refused = {"bad": "no"}
    with pytest.raises(TooManyFailuresError, match=r"work\.max_failed_products = 1"):
        worker.work(tokens_per_batch=2)
    # Of each refused text, a batch by itself, a text that every model can embed is asked, too.
    assert len(worker.large.requests) == 5
    assert len(shop.settled) == 3
    assert len(shop.released) == 1


def test_as_many_failed_products_as_allowed_stop_nothing() -> None:
    shop = Shop(_descriptions("bad 1", "good 2", "bad 3", "good 4"))
    worker = Worker(shop, max_failed_products=2)
    worker.large.refused = {"bad": "no"}
    assert worker.work(tokens_per_batch=2).failed == 2


@pytest.mark.parametrize("method", ["claim", "page", "known_vectors", "commit"])
def test_a_transient_error_anywhere_is_waited_out_and_loses_nothing(method: str) -> None:
    shop = Shop(_descriptions("one", None, "three"))
    shop.faults = {method: [TransientError("busy"), TransientError("busy")]}
    worker = Worker(shop)
    result = worker.work(products_per_page=2)
    assert (result.products, result.embedded, result.empty) == (3, 2, 1)
    first, second = worker.waits
    assert 0.1 <= first <= 0.2 <= second <= 0.4
    assert worker.large.texts == ["one", "three"]


@pytest.mark.parametrize("method", ["claim", "page", "known_vectors", "commit"])
def test_a_transient_error_that_stays_fails_the_range_and_says_why(method: str) -> None:
    shop = Shop(_descriptions("one"))
    shop.faults = {method: [TransientError("still busy") for _ in range(50)]}
    worker = Worker(shop)
    with pytest.raises(RangeFailedError, match="still busy"):
        worker.work()
    assert len(shop.released) == len(shop.claimed)
    assert sum(worker.waits) <= RETRY_SECONDS
    assert max(worker.waits) <= LONGEST_PAUSE_SECONDS
    assert len(worker.said) == 1
    assert "Trying again" in worker.said[0]


def test_a_server_that_does_not_come_back_is_unavailable_and_no_fault_of_the_range() -> None:
    shop = Shop(_descriptions("one"))
    shop.faults = {"commit": [ConnectionLostError("gone") for _ in range(50)]}
    with pytest.raises(DatabaseUnavailableError, match="gone"):
        Worker(shop).work()


def test_a_transient_error_of_the_model_is_not_a_fault_of_its_texts() -> None:
    shop = Shop(_descriptions("one", "two"))
    worker = Worker(shop)
    failures = [TransientError("rate limit"), TransientError("rate limit")]

    def answer(_: Sequence[str], right: Embeddings) -> Embeddings:
        if failures:
            raise failures.pop()
        return right

    worker.large.answer = answer
    result = worker.work()
    assert (result.embedded, result.failed) == (2, 0)
    assert shop.commits[-1][1].requests == 3


@pytest.mark.parametrize(
    "outage", [DatabaseUnavailableError("gone"), WeightsError("missing"), OutageError("quota")]
)
def test_an_outage_stops_the_range_at_once_keeps_what_is_committed_and_blames_no_product(
    outage: OutageError,
) -> None:
    shop = Shop(_descriptions("aa aa", "bb", "cc"))
    worker = Worker(shop)

    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        if "cc" in texts:
            raise outage
        return right

    worker.large.answer = answer
    with pytest.raises(type(outage)) as stopped:
        worker.work(tokens_per_batch=1)
    assert stopped.value is outage
    assert set(shop.settled) == {(1, Aspect.DESCRIPTION), (2, Aspect.DESCRIPTION)}
    assert worker.waits == []
    assert len(shop.released) == 1


def test_a_lease_that_is_lost_is_not_fought_for() -> None:
    shop = Shop(_descriptions("one"))
    shop.faults = {"commit": [LeaseLostError("taken over")]}
    worker = Worker(shop)
    with pytest.raises(LeaseLostError):
        worker.work()
    assert worker.waits == []
    assert shop.settled == {}
    assert [spend.requests for _, spend in shop.commits] == [1], "what was paid is on record"


def test_a_range_that_another_run_holds_is_left_alone() -> None:
    shop = Shop(_descriptions("one"))
    shop.faults = {"claim": [LeaseLostError("held by run-0")]}
    worker = Worker(shop)
    with pytest.raises(LeaseLostError, match="run-0"):
        worker.work()
    assert worker.large.requests == []
    assert shop.released == []


def test_a_text_edited_meanwhile_is_done_in_the_same_run() -> None:
    shop = Shop(_descriptions("old", "other"))

    def edit(texts: Texts) -> None:
        texts[1, Aspect.DESCRIPTION] = "new"

    shop.meanwhile = edit
    worker = Worker(shop)
    result = worker.work()
    assert worker.large.requests == [["old", "other"], ["new"]]
    assert shop.settled[1, Aspect.DESCRIPTION].stale.text == "new"
    assert (result.products, result.embedded, result.outdated) == (2, 2, 0)


def test_a_product_deleted_meanwhile_is_dropped_without_a_word() -> None:
    shop = Shop(_descriptions("one", "two"))

    def delete(texts: Texts) -> None:
        texts.pop((1, Aspect.DESCRIPTION), None)

    shop.meanwhile = delete
    result = Worker(shop).work()
    assert set(shop.settled) == {(2, Aspect.DESCRIPTION)}
    assert (result.products, result.outdated) == (1, 0)


def test_a_text_that_is_edited_without_end_is_left_to_the_next_run_and_counted() -> None:
    shop = Shop(_descriptions("old"))
    edits = iter(range(100))

    def edit(texts: Texts) -> None:
        texts[1, Aspect.DESCRIPTION] = f"edit {next(edits)}"

    shop.meanwhile = edit
    worker = Worker(shop)
    result = worker.work()
    assert len(worker.large.requests) == MAX_PASSES
    assert (result.products, result.embedded, result.outdated) == (0, 0, 1)
    assert shop.settled == {}


def test_what_was_sent_for_an_outdated_text_is_still_recorded_as_spent() -> None:
    shop = Shop(_descriptions("old"))
    shop.meanwhile = lambda texts: texts.update(_descriptions("new"))
    Worker(shop).work()
    assert [(len(written), spend.requests) for written, spend in shop.commits] == [(0, 1), (1, 1)]


def test_the_lease_is_given_back_even_when_the_user_stops_the_run() -> None:
    shop = Shop(_descriptions("one"))
    worker = Worker(shop)

    def answer(_: Sequence[str], __: Embeddings) -> Embeddings:
        raise KeyboardInterrupt

    worker.large.answer = answer
    with pytest.raises(KeyboardInterrupt):
        worker.work()
    assert len(shop.released) == 1


def test_a_refusal_when_asked_again_alone_is_recorded_with_its_own_reason() -> None:
    shop = Shop(_descriptions("first", "bad"))
    worker = Worker(shop)

    def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
        if list(texts) == ["bad"]:
            raise PermanentTextError("refused when alone")
        return _with_vector(0.0, times=1)(texts, right)

    worker.large.answer = answer
    result = worker.work()
    assert (result.embedded, result.failed) == (1, 1)
    assert shop.settled[2, Aspect.DESCRIPTION].reason == "refused when alone"

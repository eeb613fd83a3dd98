"""The work loop: re-embed what is stale in ranges of products.

Claim a range, then page by page: read the stale texts, take over vectors that already stand for
the same text, embed the distinct rest in batches, and commit each batch with its ledger rows. Where
a model takes many requests at once, the next page and the next range are read meanwhile, and
batches are filled across them. No transaction is open while a model works, and whatever happens,
running again carries on from what is committed.

This module owns the Protocols of what it needs and knows neither PostgreSQL nor Dagster nor any
model; those are handed in. How a batch gets its answers is `asking`, how long one waits `patience`,
how many are at work at once `in_flight`, what a range comes to `tally`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ingestion_pipeline.asking import Asking
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import BatchLimits, TextSize, batches
from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    EmbeddingServiceError,
    LeaseLostError,
    OutOfMemoryError,
    RangeFailedError,
    TooManyFailuresError,
)
from ingestion_pipeline.in_flight import LOCAL, Flight, Lane
from ingestion_pipeline.patience import LONGEST_RATE_LIMIT_SECONDS, Patience
from ingestion_pipeline.prices import Price
from ingestion_pipeline.progress import duration
from ingestion_pipeline.ranges import ProductIdRange
from ingestion_pipeline.tally import RangeResult, RangeStep, Tally
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

SECONDS_TO_STOP_IN = 5.0
"""How long a run that is told to stop waits for answers that are paid for already."""

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
        self, lease: Lease, results: Sequence[AspectResult], *spends: Spend
    ) -> list[AspectResult]:
        """Write vectors, ledger, failures and what was spent on them in one transaction.

        Returns the results that were written; the others' text has changed or their product is
        gone. Raises `LeaseLostError` if the lease is no longer ours; nothing is then written. The
        same commit again, after a reply that was lost, changes nothing.
        """
        ...

    def renew(self, lease: Lease) -> None:
        """Keep the range for its seconds from now on; `LeaseLostError` if it is not ours."""
        ...

    def record(self, owner: RunIdentity, spend: Spend) -> None:
        """Write down what was spent where there is nothing to commit."""
        ...

    def failed_product_count(self) -> int:
        """Products that failed, in this run or before, and are not waiting to be tried again."""
        ...


@dataclass(frozen=True)
class AspectModel:
    """The model of an aspect, and the fingerprint of its vectors.

    `limits` bound its batches; None: the pace's tokens, padded. `lane` says with which others its
    batches count, and how many of them may be at work at once. `turn` takes a place for a request
    of so many tokens and gives the seconds until then. `price` is what its tokens cost. `close`
    gives connections back; the next text opens others.
    """

    fingerprint: str
    embedder: Embedder
    limits: BatchLimits | None = None
    lane: Lane = LOCAL
    turn: Callable[[int], float] | None = None
    price: Price | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Pace:
    """Bounds on what the loop holds and sends at once, waits for, and puts up with.

    `lease_seconds` is how long a silent worker keeps its range, `retry_seconds` how long transient
    errors of one kind of work may go on; more failed products than `max_failed_products` (None: any
    number) end the run. `ranges_at_once` may be open where batches are filled across ranges.
    """

    products_per_page: int
    tokens_per_batch: int
    lease_seconds: int
    retry_seconds: float = 120.0
    max_failed_products: int | None = None
    ranges_at_once: int = 1


@dataclass(frozen=True)
class RangeEnd:
    """How a range ended: with a result, or left, as it was then, to another run or another day."""

    range_: ProductIdRange
    result: RangeResult
    left: LeaseLostError | RangeFailedError | None = None


def reingest(
    range_: ProductIdRange, *, owner: RunIdentity, pace: Pace, **given: Any
) -> RangeResult:
    """Bring one range up to date; what is given, and raised, is as with `reingest_ranges`.

    Raises also `LeaseLostError` when another run holds the range, and `RangeFailedError` when it
    cannot be stored or keeps meeting transient errors.
    """
    [end] = reingest_ranges([range_], owner=lambda _: owner, pace=pace, **given)
    if end.left is not None:
        raise end.left
    return end.result


def reingest_ranges(  # noqa: PLR0913 - everything that the loop touches is handed in
    ranges: Iterable[ProductIdRange],
    *,
    catalogue: Catalogue,
    store: Store,
    models: Mapping[Aspect, AspectModel],
    owner: Callable[[ProductIdRange], RunIdentity],
    pace: Pace,
    report: Callable[[RangeStep], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RangeEnd]:
    """Bring every aspect of every product of the ranges up to date, or record why not.

    Yields each range as it ends. `report` hears of every commit, `say` of what takes time or takes
    less: waiting, smaller batches. Raises an `OutageError` when nothing more can succeed; what is
    being embedded then is still waited for and kept. What was committed stays, and is not done
    again.
    """
    return _Loop(
        ranges=iter(ranges),
        catalogue=catalogue,
        store=store,
        models={model.fingerprint: model for model in models.values()},
        fingerprints={aspect: model.fingerprint for aspect, model in models.items()},
        owner=owner,
        pace=pace,
        report=report,
        say=say,
        clock=clock,
        sleep=sleep,
    ).run()


@dataclass(eq=False)
class _Range:
    """A range that is claimed, how far it is read, and how much of it is under way."""

    range_: ProductIdRange
    lease: Lease
    started: float
    unread: ProductIdRange | None
    tally: Tally = field(default_factory=Tally)
    under_way: int = 0
    passes: int = 1
    left: LeaseLostError | RangeFailedError | None = None

    @property
    def is_through(self) -> bool:
        return not self.under_way and (self.unread is None or self.left is not None)


@dataclass(eq=False)
class _Text:
    """A text on its way through a model, and whoever waits for its vector."""

    key: TextKey
    text: str
    size: TextSize
    askers: list[tuple[_Range, StaleText]]


@dataclass(eq=False)
class _Batch:
    """Texts that go to a model at once, and what it answers."""

    model: AspectModel
    texts: list[_Text]
    asking: Asking
    launched_at: float = 0.0
    seconds: float = 0.0
    error: BaseException | None = None


@dataclass
class _Queue:
    """The texts that wait for one model: those that fill whole batches, and the rest."""

    limits: BatchLimits
    full: deque[list[_Text]] = field(default_factory=deque)
    rest: list[_Text] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rest) + sum(len(batch) for batch in self.full)

    def add(self, texts: Sequence[_Text]) -> None:
        texts = [*self.rest, *texts]
        groups = batches([text.size for text in texts], self.limits)
        grouped = [[texts[position] for position in group] for group in groups]
        self.rest = grouped.pop() if grouped else []
        self.full.extend(grouped)

    def lower(self, batch: Sequence[_Text]) -> None:
        """Halve the limits, a batch having been too large for the model."""
        self.limits = self.limits.halved([text.size for text in batch])
        waiting = [text for group in self.full for text in group]
        self.full.clear()
        self.add(waiting)

    def next(self) -> list[_Text] | None:
        if self.full:
            return self.full.popleft()
        rest, self.rest = self.rest, []
        return rest or None


@dataclass
class _Loop:
    ranges: Iterator[ProductIdRange]
    catalogue: Catalogue
    store: Store
    models: Mapping[str, AspectModel]
    fingerprints: Mapping[Aspect, str]
    owner: Callable[[ProductIdRange], RunIdentity]
    pace: Pace
    report: Callable[[RangeStep], None]
    say: Callable[[str], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    open: list[_Range] = field(default_factory=list)
    ended: deque[RangeEnd] = field(default_factory=deque)
    on_the_way: dict[TextKey, _Text] = field(default_factory=dict)
    stopped: BaseException | None = None
    last_renewal: float = 0.0
    last_landing: float = 0.0

    def __post_init__(self) -> None:
        """Make what is kept for as long as the loop runs."""
        self.landed: deque[_Batch] = deque()
        self.concurrent = any(model.lane.threads for model in self.models.values())
        padded = BatchLimits(tokens=self.pace.tokens_per_batch)
        self.queues = {
            fingerprint: _Queue(model.limits or padded)
            for fingerprint, model in self.models.items()
        }
        self.flight: Flight[_Batch] = Flight(self._ask, threads=self.concurrent, say=self.say)
        self.patience = Patience(self.pace.retry_seconds, self.say, self.clock, self.sleep)
        self.asking_patience = Patience(
            self.pace.retry_seconds,
            self.flight.say if self.concurrent else self.say,
            self.clock,
            self.flight.sleep if self.concurrent else self.sleep,
        )
        # A model that works in this process is as busy with one range as with several.
        self.ranges_at_once = self.pace.ranges_at_once if self.concurrent else 1
        # Enough to fill batches from, and no more than memory has room for at any catalogue size.
        two_pages = 2 * self.pace.products_per_page * len(Aspect)
        two_batches = 2 * sum(queue.limits.texts or 0 for queue in self.queues.values())
        self.read_ahead = max(two_pages, two_batches)

    def run(self) -> Iterator[RangeEnd]:
        """Keep the models busy and the answers committed until there is no more to do."""
        try:
            while True:
                while self.ended:
                    yield self.ended.popleft()
                if not self._go_on():
                    return
        except KeyboardInterrupt:
            self._land_what_comes_soon()
            raise
        finally:
            self.flight.give_up()
            for range_ in self.open:
                self.store.release(range_.lease)

    def _go_on(self) -> bool:
        """Do what is next; whether there was anything.

        Where a model works elsewhere it comes first: it is not to wait for what is done with its
        answers. One that works in this very thread has waited already.
        """
        if self.landed and not self.concurrent:
            self._take_in_landed()
        elif (batch := self._next_batch()) is not None:
            batch.launched_at = self.clock()
            self.flight.launch(batch, batch.model.lane)
        elif self.concurrent and self.landed and self._land(seconds=0):
            pass
        elif self.landed:
            self._take_in_landed()
        elif self.concurrent and self._may_read_ahead() and self._read_on():
            pass
        elif self.flight:
            self._renew_leases()
            self._land(self.pace.lease_seconds / 3)
        elif self.stopped is not None:
            raise self.stopped
        else:
            return bool(self.ended)
        return True

    # Reading

    def _next_batch(self) -> _Batch | None:
        """A batch for a model that has room for one; reads on until there is one that is full."""
        while self.stopped is None:
            ready = [it for it in self._with_room() if self.queues[it.fingerprint].full]
            if not ready and self._with_room() and self._may_read_ahead() and self._read_on():
                continue
            for model in ready or self._with_room():
                if batch := self._batch(model):
                    return batch
            if not any(len(self.queues[it.fingerprint]) for it in self._with_room()):
                return None
        return None

    def _with_room(self) -> list[AspectModel]:
        return [model for model in self.models.values() if self.flight.has_room(model.lane)]

    def _may_read_ahead(self) -> bool:
        if self.stopped is not None:
            return False
        return sum(len(queue) for queue in self.queues.values()) < self.read_ahead

    def _batch(self, model: AspectModel) -> _Batch | None:
        texts = [
            text
            for text in self.queues[model.fingerprint].next() or []
            if not self._is_given_up(text)
        ]
        if not texts:
            return None
        sent = [text.text for text in texts]
        asking = Asking(model.embedder, sent, self.asking_patience, before=self._turn_of(model))
        return _Batch(model, texts, asking)

    def _turn_of(self, model: AspectModel) -> Callable[[Sequence[str]], None]:
        """What a request to this model waits for before it is sent."""

        def wait(texts: Sequence[str]) -> None:
            if model.turn is not None:
                seconds = model.turn(sum(model.embedder.count_tokens(texts)))
                if seconds > LONGEST_RATE_LIMIT_SECONDS:
                    raise EmbeddingServiceError(
                        f"The next request may be sent in {duration(seconds)} only, since the "
                        "endpoint asks to wait for its quota. What is committed is kept: run the "
                        "same command again then."
                    )
                if seconds > 0:
                    self.asking_patience.sleep(seconds)

        return wait

    def _is_given_up(self, text: _Text) -> bool:
        """Whether all who asked for it are ranges that are left; then it is forgotten."""
        if any(range_.left is None for range_, _ in text.askers):
            return False
        self._settled(text)
        for range_, _ in text.askers:
            self._end_if_through(range_)
        return True

    def _read_on(self) -> bool:
        """Read a page of a range that is open, or else claim the next range; whether there was one.

        What that meets, of a fault, ends the range and no other.
        """
        for range_ in self.open:
            if range_.unread is not None and range_.left is None:
                with self._fault_of(range_):
                    self._read_page(range_, range_.unread)
                self._end_if_through(range_)
                return True
        if len(self.open) >= self.ranges_at_once:
            return False
        next_range = next(self.ranges, None)
        if next_range is None:
            return False
        started = self.clock()
        try:
            lease = self.patience(
                lambda: self.store.claim(
                    next_range, self.owner(next_range), self.pace.lease_seconds
                )
            )
        except (LeaseLostError, RangeFailedError) as error:
            self.ended.append(RangeEnd(next_range, RangeResult(), error))
        else:
            self.open.append(_Range(next_range, lease, started, unread=next_range))
        return True

    def _read_page(self, range_: _Range, unread: ProductIdRange) -> None:
        """Settle what needs no model, and queue the rest."""
        page, range_.unread = self.patience(
            lambda: self.catalogue.page(unread, self.fingerprints, self.pace.products_per_page)
        )
        range_.tally.begin(page)
        settled: list[AspectResult] = []
        wanted: dict[TextKey, _Text] = {}
        followers: list[tuple[_Text, StaleText]] = []
        for stale in page:
            key = (stale.digest, stale.fingerprint)
            if key in self.on_the_way:
                followers.append((self.on_the_way[key], stale))
            elif key in wanted:
                wanted[key].askers.append((range_, stale))
            elif text := cleaned(stale.text):
                wanted[key] = _Text(key, text, TextSize(0), [(range_, stale)])
            else:
                settled.append(AspectResult(stale, Outcome.EMPTY))
        known = self.patience(lambda: self.store.known_vectors(wanted))
        for on_its_way, stale in followers:
            on_its_way.askers.append((range_, stale))
        for key, vector in known.items():
            settled += [
                AspectResult(stale, Outcome.REUSED, vector) for _, stale in wanted.pop(key).askers
            ]
        range_.under_way += len(page) - len(settled)
        self.on_the_way |= wanted
        for fingerprint, model in self.models.items():
            self._queue(model, [it for it in wanted.values() if it.key[1] == fingerprint])
        if settled:
            self._commit(range_, settled, Spend())

    def _queue(self, model: AspectModel, texts: Sequence[_Text]) -> None:
        tokens = model.embedder.count_tokens([text.text for text in texts])
        for text, count in zip(texts, tokens, strict=True):
            text.size = TextSize(count, len(text.text.encode()))
        self.queues[model.fingerprint].add(texts)

    # Embedding

    def _ask(self, batch: _Batch) -> None:
        try:
            batch.asking.ask()
        except BaseException as error:  # noqa: BLE001 - the loop sees to it, in its own thread
            batch.error = error

    def _land(self, seconds: float) -> bool:
        """Wait for a batch that is at a model, for so long; whether there was one."""
        batch = self.flight.land(seconds)
        if batch is None:
            return False
        # Of batches that are at work together, each counts the time since the one before it ended:
        # added up, it is the time in which models were at work at all.
        now = self.clock()
        batch.seconds = now - max(batch.launched_at, self.last_landing)
        self.last_landing = now
        self.landed.append(batch)
        return True

    def _land_what_comes_soon(self) -> None:
        """Commit what is paid for already, if it comes within seconds."""
        self.flight.give_up()
        deadline = time.monotonic() + SECONDS_TO_STOP_IN
        while self.flight and (left := deadline - time.monotonic()) > 0:
            self._land(left)
        if self.landed:
            self._take_in_landed()

    def _take_in_landed(self) -> None:
        """Commit all that is known of the batches that have ended, and see to what went wrong.

        Each range of theirs has one commit. What a batch took stands in that of its first text's
        range, or for itself where that cannot be.
        """
        batches, self.landed = self.landed, deque()
        by_range: dict[_Range, list[AspectResult]] = {}
        unrecorded: dict[_Range, list[Spend]] = {}
        for batch in batches:
            self._sort_in(batch, by_range)
            unrecorded.setdefault(batch.texts[0].askers[0][0], []).append(_spend(batch))
        for range_, results in by_range.items():
            if range_.left is None or isinstance(range_.left, RangeFailedError):
                with self._fault_of(range_):
                    self._commit(range_, results, *unrecorded.get(range_, [Spend()]))
                    unrecorded.pop(range_, None)
        for range_, spends in unrecorded.items():
            for spend in spends:
                self._record(range_, spend)
        for batch in batches:
            self.flight.free(batch)
            if batch.error is not None:
                self._see_to(batch, batch.error)
        for range_ in list(self.open):
            self._end_if_through(range_)

    def _record(self, range_: _Range, spend: Spend) -> None:
        self.patience(lambda: self.store.record(range_.lease.owner, spend))

    def _sort_in(self, batch: _Batch, by_range: dict[_Range, list[AspectResult]]) -> None:
        """Add what is known of a batch's texts to what is to be committed for each range."""
        unanswered = set(batch.asking.unanswered)
        for position, text in enumerate(batch.texts):
            for number, (range_, stale) in enumerate(text.askers):
                result = _result(batch.asking, position, stale, is_first=number == 0)
                if result is not None:
                    by_range.setdefault(range_, []).append(result)
            if position not in unanswered:
                self._settled(text)

    def _see_to(self, batch: _Batch, error: BaseException) -> None:
        unanswered = [batch.texts[position] for position in batch.asking.unanswered]
        match error:
            case BatchTooLargeError() if len(batch.texts) > 1:
                self._ask_for_less(batch)
                self.queues[batch.model.fingerprint].add(unanswered)
                return
            case BatchTooLargeError():
                self.stopped = self.stopped or _no_memory(batch.texts[0], error)
            case RangeFailedError() | LeaseLostError():
                for text in unanswered:
                    for range_, _ in text.askers:
                        range_.left = range_.left or error
            case _:
                # The first is the one that explains the others.
                self.stopped = self.stopped or error
        for text in unanswered:
            self._settled(text)

    def _ask_for_less(self, batch: _Batch) -> None:
        """Halve this model's batches for the rest of the run."""
        queue = self.queues[batch.model.fingerprint]
        queue.lower(batch.texts)
        self.say(
            f"There is no memory for {len(batch.texts)} texts at once: going on with at most "
            f"{queue.limits.tokens:,} tokens a batch. work.tokens_per_batch sets it from the "
            "start."
        )

    def _settled(self, text: _Text) -> None:
        """Nobody waits for a text any more."""
        del self.on_the_way[text.key]
        for range_, _ in text.askers:
            range_.under_way -= 1

    # Writing

    def _commit(self, range_: _Range, results: Sequence[AspectResult], *spends: Spend) -> None:
        written = self.patience(lambda: self.store.commit(range_.lease, results, *spends))
        self.report(range_.tally.add(written, len(results) - len(written), spends))
        if any(result.outcome is Outcome.FAILED for result in written):
            self._stop_at_too_many_failures()

    def _renew_leases(self) -> None:
        """Keep what is open: where batches wait for their turn, commits are rare."""
        now = self.clock()
        if now - self.last_renewal < self.pace.lease_seconds / 3:
            return
        self.last_renewal = now
        for range_ in self.open:
            with self._fault_of(range_):
                self.patience(lambda lease=range_.lease: self.store.renew(lease))  # type: ignore[misc]

    @contextmanager
    def _fault_of(self, range_: _Range) -> Iterator[None]:
        """Leave a range that is lost or cannot be stored; the others go on."""
        try:
            yield
        except (LeaseLostError, RangeFailedError) as error:
            range_.left = range_.left or error

    def _end_if_through(self, range_: _Range) -> None:
        """Give a range back once all of it is settled, or take what has changed meanwhile again."""
        if not range_.is_through or self.stopped is not None or range_ not in self.open:
            return
        if range_.left is None and range_.tally.result.outdated and range_.passes < MAX_PASSES:
            range_.passes += 1
            range_.tally.begin_again()
            range_.unread = range_.range_
            return
        self.open.remove(range_)
        self.store.release(range_.lease)
        seconds = self.clock() - range_.started
        result = replace(range_.tally.result, seconds=seconds)
        self.ended.append(RangeEnd(range_.range_, result, range_.left))

    def _stop_at_too_many_failures(self) -> None:
        allowed = self.pace.max_failed_products
        if allowed is None or self.stopped is not None:
            return
        failed = self.patience(self.store.failed_product_count)
        if failed > allowed:
            self.stopped = TooManyFailuresError(
                f"{failed:,} products have failed, more than work.max_failed_products = "
                f"{allowed:,}, so the run stops. `ingest failures` lists the reasons; once they "
                "are mended, `ingest failures --retry` goes on."
            )


def _spend(batch: _Batch) -> Spend:
    asking, price = batch.asking, batch.model.price
    return Spend(
        fingerprint=batch.model.fingerprint,
        requests=asking.requests,
        texts=len(asking.vectors) + len(asking.reasons),
        tokens=asking.tokens,
        seconds=batch.seconds,
        cost=price.of(asking.tokens) if price else None,
        price_version=price.version if price else None,
    )


def _no_memory(text: _Text, error: BatchTooLargeError) -> OutOfMemoryError:
    stopped = OutOfMemoryError(
        f"There is no memory to embed one text of {text.size.tokens:,} tokens: {error} Free some, "
        "or lower max_tokens of the aspect's model."
    )
    stopped.__cause__ = error
    return stopped


def _result(
    asking: Asking, position: int, stale: StaleText, *, is_first: bool
) -> AspectResult | None:
    """What is known of a text, for one of the aspects that share it."""
    if (known := asking.vectors.get(position)) is not None:
        return AspectResult(stale, Outcome.EMBEDDED if is_first else Outcome.REUSED, known)
    if (reason := asking.reasons.get(position)) is not None:
        return AspectResult(stale, Outcome.FAILED, reason=reason)
    return None

"""`ingest status`: what is done, what is left, what failed, and what to run next.

Everything is read from the shop's database, so it works beside a run and without Dagster.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import database_url, prepare
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.catalogue import AspectCount, RangeProgress
from ingestion_pipeline.database.connection import database_errors
from ingestion_pipeline.database.embeddings import FailedProduct, SpendSummary
from ingestion_pipeline.database.products_table import V1, V2, ProductsTable
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.database.shop import Shop, shop_on
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.orchestration.work_left import work_left
from ingestion_pipeline.preflight_services import NOTHING_LEFT, Estimate, estimate
from ingestion_pipeline.progress import dollars, duration
from ingestion_pipeline.ranges import EVERYTHING, key_of
from ingestion_pipeline.settings import Settings

RANGES_SHOWN = 12
FAILURES_SHOWN = 5
WATCH_SECONDS = 2.0
WATCH_SHARE = 5  # looking takes at most a fifth of the time, however large the catalogue


@dataclass(frozen=True)
class Status:
    """A moment of the whole catalogue.

    Attributes:
        products: in the catalogue; None where there is no such table.
        prepared: whether v2 and the bookkeeping exist; without them the rest is empty.
        aspects: how many aspects are in which state.
        ranges: in the order of ids; one that holds everything where none were planned yet.
        failed: the aspects that could not be embedded.
        working: the keys of the ranges that runs hold now.
        latest: what the last invocation took.
        remaining_texts: distinct texts that must go to a model.
        remaining: the time, tokens and dollars that they take, at the rates of late.
        spent: tokens, and dollars where a price is known, ever, on vectors of these models.

    """

    products: int | None
    prepared: bool = False
    aspects: tuple[AspectCount, ...] = ()
    ranges: tuple[RangeProgress, ...] = ()
    failed: tuple[FailedProduct, ...] = ()
    working: tuple[str, ...] = ()
    latest: SpendSummary | None = None
    remaining_texts: int = 0
    remaining: Estimate = NOTHING_LEFT
    spent: tuple[int, Decimal | None] = (0, None)

    @property
    def stale_products(self) -> int:
        """Products that a run would work on."""
        return sum(range_.stale_products for range_ in self.ranges)

    @property
    def failed_products(self) -> int:
        """Products with an aspect that could not be embedded."""
        return sum(range_.failed_products for range_ in self.ranges)

    @property
    def done_products(self) -> int:
        """Products of which every aspect is as it should be."""
        return sum(map(_done, self.ranges))

    def next_steps(self) -> list[str]:
        """What to run next, most useful first."""
        if not self.products:
            return ["`ingest load FILE` brings products in; `ingest demo` makes a small shop."]
        if not self.prepared:
            return [
                "`ingest preflight` looks whether all is ready.",
                "`ingest --limit 5` takes five products all the way, `ingest` takes all.",
            ]
        if self.working:
            return ["A run is at work; `ingest status --watch` follows it."]
        if self.stale_products:
            return ["`ingest` does what is left, and nothing twice."]
        if self.failed:
            return ["`ingest failures` says why; `ingest failures --retry` tries them again."]
        return ['All is done. `ingest verify` checks it; `ingest search "..."` uses it.']

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "products": self.products,
            "prepared": self.prepared,
            "done_products": self.done_products,
            "stale_products": self.stale_products,
            "failed_products": self.failed_products,
            "aspects": _by_aspect(self.aspects),
            "ranges": [
                {
                    "key": range_.key,
                    "products": range_.products,
                    "stale_products": range_.stale_products,
                    "failed_products": range_.failed_products,
                }
                for range_ in self.ranges
            ],
            "failed": [asdict(failure) for failure in self.failed],
            "working": list(self.working),
            "latest": asdict(self.latest) if self.latest else None,
            "remaining_texts": self.remaining_texts,
            "remaining_seconds": self.remaining.seconds,
            "remaining_tokens": self.remaining.tokens,
            "remaining_dollars": _text(self.remaining.cost),
            "spent_tokens": self.spent[0],
            "spent_dollars": _text(self.spent[1]),
            "next": self.next_steps(),
        }


def status(*, watch: bool, as_json: bool) -> int:
    """Show the status once, or again and again until Ctrl-C."""
    if watch and as_json:
        raise InputError(
            "--watch and --json exclude each other.\n→ Call --json as often as needed."
        )
    settings = prepare(report=terminal.note).settings
    if as_json:
        terminal.print_json(look(settings).as_dict())
        return ExitCode.OK
    while True:
        began = time.monotonic()
        seen = look(settings)
        took = time.monotonic() - began
        if watch:
            terminal.clear()
        _show(seen, settings)
        if not watch:
            return ExitCode.OK
        try:
            time.sleep(max(WATCH_SECONDS, took * WATCH_SHARE))
        except KeyboardInterrupt:
            return ExitCode.OK  # the way to end it


def look(settings: Settings) -> Status:
    """Read the status; raises where the database does not answer."""
    names = settings.catalogue
    tables = {"products": names.products, V1: names.v1, V2: names.v2}
    with Session(database_url(settings)) as session:
        if not ProductsTable(session.live, Queries(tables=tables)).exists():
            return Status(products=None)
        shop = shop_on(session, settings)
        if not shop.is_prepared():
            return Status(products=shop.catalogue.count())
        return _look(shop)


def _look(shop: Shop) -> Status:
    fingerprints = shop.settings.fingerprints
    planned = shop.embeddings.ranges() or [(key_of(EVERYTHING, shop.id_type), EVERYTHING)]
    ranges = shop.catalogue.range_progress(planned, fingerprints)
    left = work_left(shop)
    estimated = estimate(left)
    with database_errors():
        query = shop.queries.compose("live_leases")
        working = [str(row[0]) for row in shop.connection.execute(query).fetchall()]
    return Status(
        products=sum(range_.products for range_ in ranges),
        prepared=True,
        aspects=tuple(shop.catalogue.aspect_counts(fingerprints)),
        ranges=tuple(ranges),
        failed=tuple(shop.embeddings.failed_products()),
        working=tuple(working),
        latest=shop.embeddings.spend(),
        remaining_texts=sum(work.texts for work in left.values()),
        remaining=estimated,
        spent=shop.embeddings.spent(
            [fingerprints[it] for it, model in shop.settings.aspects.items() if model.is_remote]
        ),
    )


def _done(range_: RangeProgress) -> int:
    # A product may be stale by one aspect and failed by another: never claim more than is done.
    return max(range_.products - range_.stale_products - range_.failed_products, 0)


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)


def _by_aspect(counts: tuple[AspectCount, ...]) -> dict[str, dict[str, int]]:
    by_aspect: dict[str, dict[str, int]] = {aspect.value: {} for aspect in Aspect}
    for count in counts:
        by_aspect[count.aspect.value][count.state] = count.aspects
    return by_aspect


# --- what a person sees ---------------------------------------------------------------------------


def _show(seen: Status, settings: Settings) -> None:
    table = settings.catalogue.products
    if seen.products is None:
        terminal.say(f"There is no table {table} in this database yet.")
    elif not seen.prepared:
        products = terminal.counted(seen.products, "product")
        terminal.say(f"{table} has {products}, and nothing was prepared yet.")
    else:
        done = seen.done_products
        share = done * 100 // seen.products if seen.products else 100  # down: 100% means all
        terminal.say(
            f"{settings.catalogue.v2}: {done:,} of {seen.products:,} products done ({share}%)",
            style="bold",
        )
        _show_aspects(seen)
        _show_ranges(seen)
        _show_failures(seen)
        _show_run(seen, settings)
    terminal.say()
    for step in seen.next_steps():
        terminal.next_step(step)


def _show_aspects(seen: Status) -> None:
    settled = ("done", "empty", "failed")
    rows = []
    for aspect, states in _by_aspect(seen.aspects).items():
        stale = {state: count for state, count in states.items() if state not in settled}
        why = ", ".join(f"{count:,} {state}" for state, count in sorted(stale.items()))
        counts = [f"{states.get(state, 0):,}" for state in settled]
        rows.append((aspect, *counts, f"{sum(stale.values()):,}", why))
    terminal.say()
    terminal.table(("aspect", *settled, "stale", ""), rows, right={1, 2, 3, 4})


def _show_ranges(seen: Status) -> None:
    unfinished = [r for r in seen.ranges if r.stale_products or r.failed_products]
    finished = [r for r in seen.ranges if r not in unfinished]
    shown = [*unfinished, *finished][:RANGES_SHOWN]
    rows: list[tuple[str, ...]] = [
        _row(
            range_.key,
            (range_.products, _done(range_), range_.stale_products, range_.failed_products),
            "at work" if range_.key in seen.working else "",
        )
        for range_ in seen.ranges
        if range_ in shown
    ]
    left_out = len(seen.ranges) - len(shown)
    if left_out:
        unfinished_left_out = max(len(unfinished) - len(shown), 0)
        note = f"{unfinished_left_out:,} not done" if unfinished_left_out else "all done"
        rows.append((f"{left_out:,} more ranges, {note}", "", "", "", "", ""))
    totals = (seen.products or 0, seen.done_products, seen.stale_products, seen.failed_products)
    terminal.say()
    header = ("range of product ids", "products", "done", "stale", "failed", "")
    terminal.table(header, [*rows, _row("in all", totals)], right={1, 2, 3, 4})


def _row(name: str, counts: tuple[int, ...], note: str = "") -> tuple[str, ...]:
    return (name, *(f"{count:,}" for count in counts), note)


def _show_failures(seen: Status) -> None:
    if not seen.failed:
        return
    terminal.say()
    shown = seen.failed[:FAILURES_SHOWN]
    rows = [(f.product_id, f.name or "", f.aspect.value, f.reason) for f in shown]
    terminal.table(("failed product", "name", "aspect", "reason"), rows)
    if len(seen.failed) > len(shown):
        terminal.say(f"  and {len(seen.failed) - len(shown):,} more")


def _show_run(seen: Status, settings: Settings) -> None:
    terminal.say()
    if seen.latest is not None:
        run = seen.latest
        paid = f", {dollars(run.cost)}" if run.cost is not None else ""
        terminal.say(
            f"  Last run  {run.finished_at:%Y-%m-%d %H:%M} UTC: {run.embedded:,} embedded, "
            f"{run.reused:,} reused, {run.empty:,} empty, {run.failed:,} failed, "
            f"{run.tokens:,} tokens in {duration(run.seconds)} of model time{paid}"
        )
    tokens, spent = seen.spent
    if spent is not None:
        allowed = settings.budget.dollars
        most = f" of {dollars(allowed)} in the budget" if allowed is not None else ""
        terminal.say(f"  Spent     {dollars(spent)}{most}, {tokens:,} tokens in all")
    if seen.stale_products:
        left = f"{seen.remaining_texts:,} texts to embed"
        seconds, cost = seen.remaining.seconds, seen.remaining.cost
        time_left = "time not known yet" if seconds is None else f"about {duration(seconds)}"
        money = f", about {dollars(cost)}" if cost is not None else ""
        terminal.say(f"  Left      {left}, {time_left}{money}")

"""`ingest failures`: the products that could not be embedded, by cause, and another try."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.embeddings import FailedProduct
from ingestion_pipeline.database.shop import Shop, open_shop

CAUSES_SHOWN = 10
PRODUCTS_SHOWN = 5


@dataclass(frozen=True)
class Cause:
    """A reason, and every aspect that failed for it; times in UTC."""

    reason: str
    failed: tuple[FailedProduct, ...]

    @property
    def products(self) -> int:
        """How many products have an aspect that failed for this reason."""
        return len({failure.product_id for failure in self.failed})

    @property
    def attempts(self) -> tuple[int, int]:
        """The fewest and the most attempts at one of them."""
        attempts = [failure.attempts for failure in self.failed]
        return min(attempts), max(attempts)

    @property
    def first_failed_at(self) -> datetime:
        """When the first of them failed for the first time."""
        return min(failure.first_failed_at for failure in self.failed)

    @property
    def last_failed_at(self) -> datetime:
        """When one of them failed last."""
        return max(failure.last_failed_at for failure in self.failed)

    def as_dict(self) -> dict[str, Any]:
        """The cause in numbers."""
        fewest, most = self.attempts
        return {
            "reason": self.reason,
            "aspects": len(self.failed),
            "products": self.products,
            "fewest_attempts": fewest,
            "most_attempts": most,
            "first_failed_at": self.first_failed_at,
            "last_failed_at": self.last_failed_at,
        }


def failures(*, retry: bool, as_json: bool) -> int:
    """List them, or make them stale again and run."""
    settings = prepare(report=terminal.note).settings
    with open_shop(settings) as shop:
        failed = _failed(shop)
        if retry and failed:
            shop.embeddings.retry_failed()
    if retry and failed:
        from ingestion_pipeline.cli import main_job

        return main_job.ingest(limit=None, as_json=as_json)
    causes = by_cause(failed)
    if as_json:
        terminal.print_json(
            {
                "causes": [cause.as_dict() for cause in causes],
                "failed": [asdict(failure) for failure in failed],
            }
        )
    elif failed:
        show(causes)
    else:
        terminal.say("No product has failed.")
    return ExitCode.OK


def by_cause(failed: Iterable[FailedProduct]) -> list[Cause]:
    """One cause for each reason, the most frequent first."""
    by_reason: dict[str, list[FailedProduct]] = {}
    for failure in failed:
        by_reason.setdefault(failure.reason, []).append(failure)
    causes = [Cause(reason, tuple(failures)) for reason, failures in by_reason.items()]
    return sorted(causes, key=lambda cause: (-len(cause.failed), cause.reason))


def show(causes: list[Cause]) -> None:
    """Each cause with its numbers and its first products, and what to do."""
    aspects = sum(len(cause.failed) for cause in causes)
    products = len({failure.product_id for cause in causes for failure in cause.failed})
    terminal.say(f"{_counted(aspects, products)} could not be embedded", style="bold")
    for cause in causes[:CAUSES_SHOWN]:
        terminal.say()
        terminal.say(f"  {cause.reason}")
        terminal.say(f"  {_counted(len(cause.failed), cause.products)}, {_history(cause)}")
        _show_products(cause)
    terminal.say()
    if len(causes) > CAUSES_SHOWN:
        terminal.say(f"{len(causes) - CAUSES_SHOWN:,} more causes; --json gives all")
        terminal.say()
    terminal.next_step("Mend what the causes name, then `ingest failures --retry`.")


def _show_products(cause: Cause) -> None:
    shown = cause.failed[:PRODUCTS_SHOWN]
    rows = [(failure.product_id, failure.name or "", failure.aspect.value) for failure in shown]
    terminal.table(("product", "name", "aspect"), rows, right={0})
    if len(cause.failed) > len(shown):
        terminal.say(f"  and {len(cause.failed) - len(shown):,} more; --json gives all")


def _counted(aspects: int, products: int) -> str:
    return f"{terminal.counted(aspects, 'aspect')} of {terminal.counted(products, 'product')}"


def _history(cause: Cause) -> str:
    fewest, most = cause.attempts
    tried = f"tried {fewest:,} to {most:,} times" if most > fewest else _tries(most)
    first, last = (
        f"{cause.first_failed_at:%Y-%m-%d %H:%M}",
        f"{cause.last_failed_at:%Y-%m-%d %H:%M}",
    )
    return f"{tried}, {first} UTC" if first == last else f"{tried}, {first} to {last} UTC"


def _tries(attempts: int) -> str:
    return "tried once" if attempts == 1 else f"tried {attempts:,} times"


def _failed(shop: Shop) -> list[FailedProduct]:
    return shop.embeddings.failed_products() if shop.is_prepared() else []

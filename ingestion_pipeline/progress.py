"""How far a run has come: one set of numbers for the terminal, the log and the report (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    `done` and `total` count products with something to do, one that is half done as half a product;
    `failed` counts failed products among those done; `seconds` is the time since the first of them;
    `embedded` and `reused` count vectors.
    """

    done: float
    total: int
    failed: int
    seconds: float
    embedded: int = 0
    reused: int = 0

    @property
    def products_done(self) -> int:
        """Whole products; sums of parts that are a hair below one count as one."""
        return int(self.done + 1e-6)

    @property
    def share(self) -> float:
        """Between 0 and 1; 1 where there is nothing to do."""
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def rate(self) -> float | None:
        """Products a second; None until a product is done."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    @property
    def remaining_seconds(self) -> float | None:
        """Time left at the rate so far; None until there is a rate."""
        return max(self.total - self.done, 0) / self.rate if self.rate else None

    def __str__(self) -> str:
        # Rounded down: 100% is said when all is done, and not before.
        percent = int(self.share * 100 + 1e-6)
        parts = [f"{self.products_done:,}/{self.total:,} products", f"{percent}%"]
        if self.rate is not None:
            parts.append(f"{self.rate:.1f}/s")
        if self.remaining_seconds is not None and self.products_done < self.total:
            parts.append(f"{duration(self.remaining_seconds)} left")
        parts.append(f"{self.failed:,} failed")
        return " · ".join(parts)


def dollars(amount: Decimal) -> str:
    """US dollars for people: cents, and of less than a cent what there is: `$20.50`, `$0.0041`."""
    if amount >= Decimal("0.01") or not amount:
        return f"${amount:,.2f}"
    return f"${amount:.{2 - amount.adjusted() - 1}f}"


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:  # noqa: PLR2004 - below ten seconds a tenth is worth showing
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"

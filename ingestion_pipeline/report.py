"""The report of one invocation: what was done, how fast, what it holds, what the checks say (pure).

Gathering the numbers is the caller's work; here they are put into words, for people and machines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal

from ingestion_pipeline.progress import dollars, duration

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~"})
_SIGNS = {"pass": "✅", "warn": "⚠️", "unknown": "❔", "fail": "❌"}
_KILO = 1000


@dataclass(frozen=True)
class CheckVerdict:
    """What one check says; `status` is pass, warn, unknown or fail."""

    name: str
    status: str
    summary: str


@dataclass(frozen=True)
class Report:
    """One invocation in numbers.

    `products` are all in the catalogue, `processed` those that the invocation wrote, `left` those
    with something still to do. `embedded`,
    `reused`, `empty` and `failed` count the aspects written; `failed_products` are all that stand
    in `ingestion.failed_products` at the end. `seconds` is the time from the first run's start,
    `model_seconds` the time spent in models. `cost` is None where nobody bills.
    """

    invocation: str
    products: int
    processed: int
    left: int
    embedded: int
    reused: int
    empty: int
    failed: int
    failed_products: int
    requests: int
    tokens: int
    seconds: float
    model_seconds: float
    cost: Decimal | None
    table_bytes: int
    index_bytes: int
    checks: tuple[CheckVerdict, ...]

    @property
    def skipped(self) -> int:
        """Products that were up to date already."""
        return max(self.products - self.processed - self.left, 0)

    @property
    def embeddings_per_second(self) -> float | None:
        """Texts a second while a model worked; None if none did."""
        return self.embedded / self.model_seconds if self.embedded and self.model_seconds else None

    @property
    def headline(self) -> str:
        """The report in a sentence."""
        if not self.processed and not self.left:
            return f"All {self.products:,} products were up to date: nothing was embedded."
        left = f" {self.left:,} products are left to do." if self.left else ""
        return (
            f"{self.processed:,} of {self.products:,} products in {duration(self.seconds)}: "
            f"{_counted(self.embedded, 'text')} embedded, "
            f"{_counted(self.reused, 'vector')} reused.{left}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Every number with its name, as people read them."""
        rate = self.embeddings_per_second
        rows = [
            ("Products", f"{self.products:,}"),
            ("Processed", f"{self.processed:,}"),
            ("Up to date before", f"{self.skipped:,}"),
            ("Left to do", f"{self.left:,}"),
            ("Texts embedded", f"{self.embedded:,}"),
            ("Vectors reused", f"{self.reused:,}"),
            ("Aspects without text", f"{self.empty:,}"),
            ("Aspects failed", f"{self.failed:,}"),
            ("Failed products in all", f"{self.failed_products:,}"),
            ("Total time", duration(self.seconds)),
            ("Time in models", duration(self.model_seconds)),
            ("Embeddings a second", f"{rate:.1f}" if rate is not None else "none made"),
            ("Tokens", f"{self.tokens:,}"),
            ("Table", _size(self.table_bytes)),
            ("Indexes", _size(self.index_bytes)),
        ]
        if self.cost is not None:
            rows.insert(-2, ("Cost", dollars(self.cost)))
        return rows

    def as_markdown(self) -> str:
        """The report for Dagster; every text that is not ours is escaped."""
        lines = [_escaped(self.headline), "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {_escaped(value)} |" for name, value in self.rows()]
        if self.checks:
            lines += ["", "| Check | | |", "|---|---|---|"]
            lines += [
                f"| {_escaped(check.name)} | {_SIGNS.get(check.status, '')} {check.status} "
                f"| {_escaped(check.summary)} |"
                for check in self.checks
            ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON has it; `cost` as text, since money is exact."""
        return asdict(self) | {
            "checks": [asdict(check) for check in self.checks],
            "skipped": self.skipped,
            "embeddings_per_second": self.embeddings_per_second,
            "cost": None if self.cost is None else str(self.cost),
        }


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line of a table."""
    return " ".join(text.split()).translate(_MARKDOWN)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < _KILO:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= _KILO
    return f"{value:,.1f} TB"

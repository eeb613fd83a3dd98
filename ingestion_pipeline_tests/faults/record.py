"""The table of `make faults`: a row for each fault that a test caused, and what it led to.

A test names its fault with `@pytest.mark.fault("...")`, asks for the fixture `fault` and tells it
what an audit found; tests of the same fault share a row. The rows travel with the tests' reports,
since the tests may run in several processes. The table is printed at the end and, where
FAULTS_TABLE names a file, written there as Markdown.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from ingestion_pipeline_tests.faults.audit import Audit

COLUMNS = (
    "fault",
    "times caused",
    "products lost",
    "products wrong",
    "texts paid twice",
    "seconds to recover",
)
_ROW = "fault row"
_NAME = "fault name"
_PLACE = "fault place"
_LEFT_OUT = "faults left out"

_left_out = pytest.StashKey[list[str]]()


def thorough() -> bool:
    """Whether every fault is to be caused as often as promised: `make faults`."""
    return os.environ.get("FAULTS") == "all"


def times(few: int, all_: int) -> int:
    """How often to cause a fault: `few` in `make test`, `all_` in `make faults`."""
    return all_ if thorough() else few


@dataclass(frozen=True)
class Row:
    """What one test, or all tests of one fault, came to; `seconds` is the longest recovery."""

    caused: int
    lost: int
    wrong: int
    paid_twice: int
    allowed_paid_twice: int
    seconds: float

    def __add__(self, other: Row) -> Row:
        return Row(
            self.caused + other.caused,
            self.lost + other.lost,
            self.wrong + other.wrong,
            self.paid_twice + other.paid_twice,
            self.allowed_paid_twice + other.allowed_paid_twice,
            max(self.seconds, other.seconds),
        )

    def cells(self) -> list[str]:
        bound = f" (at most {self.allowed_paid_twice:,})" if self.allowed_paid_twice else ""
        return [
            f"{self.caused:,}",
            str(self.lost),
            str(self.wrong),
            f"{self.paid_twice}{bound}",
            f"{self.seconds:.1f}",
        ]


@dataclass
class Fault:
    """The fault that a test causes; `properties` are the test's own, and carry its rows."""

    name: str
    properties: list[tuple[str, object]]

    def recovered(
        self, audit: Audit, *, seconds: float, caused: int = 1, allowed_paid_twice: int = 0
    ) -> None:
        """Add to the fault's row, then assert that nothing is lost, wrong or paid for too often.

        `seconds` is the time from the end of the fault to the end of the work, the longest one
        where the fault was `caused` several times.
        """
        row = Row(caused, audit.lost, audit.wrong, audit.paid_twice, allowed_paid_twice, seconds)
        self.properties.append((_ROW, asdict(row)))
        assert (audit.lost, audit.wrong, audit.orphans) == (0, 0, 0), audit
        assert audit.paid_twice <= allowed_paid_twice, audit


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """The fault that the test's marker names; the test has to say what came of it."""
    marker = request.node.get_closest_marker("fault")
    if marker is None:
        pytest.fail('A test of a fault names it: @pytest.mark.fault("...").', pytrace=False)
    return Fault(str(marker.args[0]), request.node.user_properties)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): the test's row in the table of faults")
    config.addinivalue_line(
        "markers", "needs(available, sentence): what the machine must have for the test's fault"
    )
    config.stash[_left_out] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name each test's row. A test of a fault that has no place here is left out of `make test`."""
    for place, item in enumerate(items):
        if marker := item.get_closest_marker("fault"):
            item.user_properties += [(_NAME, str(marker.args[0])), (_PLACE, place)]
    if thorough():
        return
    left_out = [item for item in items if _missing(item)]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[_left_out] += [f"{item.nodeid}: {_missing(item)}" for item in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if (sentence := _missing(item)) is not None:
        pytest.fail(f"This fault cannot be caused on this machine. {sentence}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    yield
    names = [name for name, _ in item.user_properties]
    if _NAME in names and _ROW not in names:
        pytest.fail("The test never said what came of its fault.", pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands on what it left out."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_LEFT_OUT] = session.config.stash[_left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    output: dict[str, list[str]] = getattr(node, "workeroutput", {})
    known = config.stash[_left_out]
    known += [line for line in output.get(_LEFT_OUT, []) if line not in known]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = _table(report for reports in terminalreporter.stats.values() for report in reports)
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(_aligned(lines)))
        if file := os.environ.get("FAULTS_TABLE"):
            Path(file).write_text("\n".join(_markdown(lines)) + "\n", encoding="utf-8")
    left_out = config.stash[_left_out]
    if left_out:
        terminalreporter.section("faults that cannot be caused on this machine")
        terminalreporter.write_line("\n".join(left_out))


def _missing(item: pytest.Item) -> str | None:
    """What the machine lacks for the fault of a test; None if it has everything."""
    needs = [marker.args for marker in item.iter_markers("needs")]
    return next((sentence for available, sentence in needs if not available), None)


def _table(reports: Iterable[object]) -> list[list[str]]:
    """The cells of each fault's row, in the order in which the tests were collected."""
    tests = [
        (dict(report.user_properties), report)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when != "teardown"
    ]
    rows: dict[str, Row | None] = {}
    failed: set[str] = set()
    for properties, report in sorted(
        ((properties, report) for properties, report in tests if _NAME in properties),
        key=lambda test: int(str(test[0][_PLACE])),
    ):
        name = str(properties[_NAME])
        rows.setdefault(name, None)
        if report.failed:
            failed.add(name)
        for key, value in report.user_properties:
            if key == _ROW and isinstance(value, dict):
                before, row = rows[name], Row(**value)
                rows[name] = before + row if before else row
    return [
        [
            f"FAILED: {name}" if name in failed else name,
            *(row.cells() if row else ["-"] * (len(COLUMNS) - 1)),
        ]
        for name, row in rows.items()
    ]


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal: names to the left, numbers to the right."""
    table = [COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    ]


def _markdown(rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]

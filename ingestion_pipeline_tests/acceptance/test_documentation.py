"""The documentation is true: its commands run as written, and what it names exists.

How a page is read: ```sh holds commands, ```toml and ```sql hold files that the reader makes, whose
first line is a comment with the file's name, ```console and ```text are only shown. All commands of
a page run in order in one shell, in a project as `make demo` leaves it behind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
import typer.main
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel
from typer.core import TyperGroup

from ingestion_pipeline.cli.app import app
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.settings import AspectSettings, Settings
from ingestion_pipeline.verification.checks import CHECKS
from ingestion_pipeline_tests.shops import create_products, products

REPOSITORY = Path(__file__).parents[2]
README = "README.md"
PAGES = [README, "CHANGELOG.md", *(f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md"))]

SHOWN = {"console", "text"}
FILES = {"toml": "#", "sql": "--"}  # and how a comment begins

# What a checkout holds, as far as a reader's commands need it.
CHECKOUT = (
    *("Makefile", "setup.py", "pyproject.toml", "constraints.txt"),
    *("ingestion.toml", "dagster.yaml", "workspace.yaml", "sql"),
)
PROGRAMS = Path(sys.executable).parent
SESSION_SECONDS = 240
SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class StandIn:
    """What runs in the place of a command of the documentation, and why it cannot run itself."""

    command: str
    reason: str


NOT_AS_WRITTEN: Mapping[str, StandIn] = {
    "export DATABASE_URL=postgresql://user:password@host:5432/shop": StandIn(
        'export DATABASE_URL="$SHOP_OF_THE_READER"', "the address is an example"
    ),
    "make faults": StandIn("make --dry-run faults", "it takes the better part of an hour"),
    "make safeguards": StandIn("make --dry-run safeguards", "it runs other tests many times"),
    "ingest up": StandIn('ingest up --port "$FREE_PORT"', "port 3000 may be taken on this machine"),
}
UP = "ingest up"

# Files that a page takes for granted, by the name that it gives them.
READERS_FILES: Mapping[str, str] = {
    "electronics.jsonl": """\
{"id": 4107, "name": "Lumo Silent Mouse", "brand": "Lumo", "description": "Its buttons are hardly \
heard.", "features": "Connection: wireless; Battery: one AA; Buttons: 5"}
{"id": 4211, "name": "Lumo Silent Mouse, Left-Handed", "brand": "Lumo", "description": "The same \
mouse for the other hand.", "features": "Connection: wireless; Battery: one AA; Buttons: 5"}
{"id": 90032, "name": "Tarn 27 Monitor", "brand": "Tarn", "description": "Turns upright for long \
pages.", "features": "Resolution: 2560 x 1440; Ports: HDMI, USB-C; Height: adjustable"}
{"id": 118540, "name": "Bask Field Recorder", "brand": "Bask", "description": "Two days of birds \
on one charge.", "features": "Channels: 2; Storage: microSD; Weight: 140 g"}
{"id": 700100, "name": "Quill E-Reader", "brand": "Quill &amp; Co", "description": "Reads like \
paper. <b>Waterproof.</b>", "features": "Screen: 7 inch; Storage: 32 GB; Waterproof: yes"}
{"id": 700101, "name": "Quill Cover", "brand": "Quill &amp; Co", "description": "Wakes the reader \
when opened.", "features": null}
{"id": 3000501, "name": "USB-C Cable 2 m", "brand": null, "description": null, "features": \
"Length: 2 m; Power: 100 W"}
"""
}


# --- reading a page -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A page of the documentation, parsed."""

    name: str
    tokens: list[Token]

    @classmethod
    def read(cls, name: str) -> Page:
        return cls.of(name, (REPOSITORY / name).read_text(encoding="utf-8"))

    @classmethod
    def of(cls, name: str, markdown: str) -> Page:
        blocks = MarkdownIt("commonmark").enable("table").parse(markdown)
        return cls(name, list(chain.from_iterable([it, *(it.children or ())] for it in blocks)))

    def blocks(self) -> list[tuple[str, str]]:
        """The tag and the content of each fenced or indented block."""
        kinds = {"fence", "code_block"}
        return [(it.info.strip(), it.content) for it in self.tokens if it.type in kinds]

    def inline_code(self) -> list[str]:
        return [it.content for it in self.tokens if it.type == "code_inline"]

    def headings(self) -> list[str]:
        following = zip(self.tokens, self.tokens[1:], strict=False)
        return [text.content for it, text in following if it.type == "heading_open"]

    def links(self) -> list[str]:
        """Where links and images lead."""
        found = (it.attrGet("href") or it.attrGet("src") for it in self.tokens)
        return [str(target) for target in found if target is not None]

    def table(self, first_column: str) -> list[dict[str, str]]:
        """The rows of every table whose first column is called so; `heading` is the one above."""
        heading, header, cells = "", list[str](), list[str]()
        rows = []
        for token, text in zip(self.tokens, self.tokens[1:], strict=False):
            if token.type == "heading_open":
                heading = text.content
            elif token.type == "tr_open":
                cells = []
            elif token.type in {"th_open", "td_open"}:
                cells.append(text.content if text.type == "inline" else "")
            elif token.type == "thead_close":
                header = cells
            elif token.type == "tr_close" and header[:1] == [first_column]:
                rows.append({"heading": heading, **dict(zip(header, cells, strict=True))})
            elif token.type == "table_close":
                header = []
        return rows


def commands(block: str) -> list[str]:
    r"""The command lines of a block; `\` at a line's end continues it."""
    lines = block.replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def file_name(tag: str, block: str) -> str | None:
    """The file that a block's first line, a comment, says it is."""
    named = re.match(rf"{FILES[tag]} ([\w./-]+\.{tag})\b", block)
    return named[1] if named else None


def script(page: Page) -> str:
    """All that a reader does on a page, as one script of bash that says what it runs."""
    steps = ["set -euo pipefail"]
    for tag, block in page.blocks():
        if tag == "sh":
            for written in commands(block):
                command = NOT_AS_WRITTEN.get(written, StandIn(written, "")).command
                steps += [f"echo {shlex.quote(f'$ {command}')}", command]
        elif tag in FILES:
            name = file_name(tag, block)
            assert name, f"{page.name}: begin this block with a comment naming its file:\n{block}"
            steps.append(f"cat > {name} <<'END-OF-FILE'\n{block}END-OF-FILE")
    return "\n".join([*steps, ""])


def all_pages() -> list[Page]:
    return [Page.read(name) for name in PAGES]


def pages_with_commands() -> list[str]:
    return [page.name for page in all_pages() if "sh" in dict(page.blocks())]


# --- a reader at work -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A session that has ended: everything it printed, and the pages of the UI that were opened."""

    exit_code: int
    transcript: str
    opened: list[str]


def do(steps: str, project: Path, environment: Mapping[str, str]) -> Done:
    """Run a script in one bash as a reader would, who opens what `ingest up` prints, then Ctrl-C.

    Whatever the script started in its process group has ended when this returns, or has been
    killed, which is an error.
    """
    transcript = project / "transcript.txt"
    (project / "session.sh").write_text(steps, encoding="utf-8")
    opened: list[str] = []
    with transcript.open("wb") as output:
        bash = subprocess.Popen(
            ["bash", "session.sh"],
            cwd=project,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + SESSION_SECONDS
            while bash.poll() is None and time.monotonic() < deadline:
                said = transcript.read_text(encoding="utf-8", errors="replace")
                addresses = re.findall(r"^Dagster UI +(http://\S+)", said, re.MULTILINE)
                if len(addresses) > len(opened) and (served := _opened(addresses[-1])):
                    opened.append(served)
                    os.killpg(bash.pid, signal.SIGINT)  # as the terminal does at Ctrl-C
                time.sleep(0.1)
            finished = bash.poll() is not None
        finally:
            left = _end(bash)
    said = transcript.read_text(encoding="utf-8", errors="replace")
    assert finished, f"not done after {SESSION_SECONDS} s:\n{said}"
    assert not left, f"still running after the session: {left}\n{said}"
    return Done(bash.returncode, said, opened)


def _opened(address: str) -> str | None:
    """The page behind an address; None while nothing is served there."""
    try:
        with urlopen(address, timeout=5) as answer:  # noqa: S310 - what `ingest up` printed
            assert answer.status == HTTPStatus.OK
            page: bytes = answer.read()
    except (URLError, TimeoutError, ConnectionError):
        return None
    return page.decode()


def _end(bash: subprocess.Popen[bytes]) -> list[str]:
    """End what is left of the session's process group, and say what that was."""
    deadline = time.monotonic() + (SHUTDOWN_SECONDS if bash.poll() is not None else 0)
    while (left := _of_group(bash.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        os.killpg(bash.pid, signal.SIGKILL)
    bash.wait()
    return left


def _of_group(group: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(shlex.join(process.cmdline()[:5]))
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def reader(project: Path, *, activated: bool) -> dict[str, str]:
    """The environment of a reader in `project`, with or without the virtual environment active."""
    # What make exports to its children is about our own `make test`.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "VIRTUAL_"))}
    folders = [it for it in kept["PATH"].split(os.pathsep) if it and Path(it) != PROGRAMS]
    if activated:
        folders.insert(0, str(PROGRAMS))
    return kept | {
        "PATH": os.pathsep.join(folders),
        # So that `ingest` takes sql/ from the project, where a reader would edit it.
        "PYTHONPATH": str(project),
        "FREE_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def check_out(project: Path) -> None:
    """Make a checkout at `project`, with our own virtual environment for its own."""
    project.mkdir()
    for name in CHECKOUT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, project / name)
        else:
            shutil.copy(source, project / name)
    (project / "ingestion_pipeline").symlink_to(REPOSITORY / "ingestion_pipeline")
    (project / ".venv").mkdir()
    (project / ".venv" / "bin").symlink_to(PROGRAMS)
    (project / ".venv" / ".installed").touch()  # newer than what it depends on: nothing to install


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For projects. Not pytest's own: that is closed to the user a server of root runs as."""
    folder = Path(tempfile.mkdtemp(prefix="ingestion-documentation-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def after_demo(folder: Path) -> Path:
    """A project after its first `make demo`, with the embedded server stopped."""
    project = folder / "demo"
    check_out(project)
    try:
        done = do("make demo\n", project, reader(project, activated=False))
    finally:
        local_server.stop(project / ".ingestion" / "postgres")
    assert done.exit_code == 0, done.transcript
    return project


@pytest.fixture
def project(after_demo: Path, folder: Path) -> Iterator[Path]:
    """A copy of that project, for one page."""
    project = Path(tempfile.mkdtemp(prefix="page-", dir=folder)) / "shop"
    # cp keeps the owner of the server's data, which shutil.copytree does not.
    subprocess.run(["cp", "-a", after_demo, project], check=True, timeout=60)
    (project / ".venv" / ".installed").touch()
    try:
        yield project
    finally:
        local_server.stop(project / ".ingestion" / "postgres", immediate=True)


@pytest.mark.timeout(2 * SESSION_SECONDS + 60)  # the first one makes the demo, too
@pytest.mark.parametrize("name", pages_with_commands())
def test_every_command_of_a_page_works_in_order_as_a_reader_types_it(
    name: str, project: Path, database_url: str
) -> None:
    page = Page.read(name)
    with connect(database_url) as connection:
        create_products(connection, products(7))
    for file, content in READERS_FILES.items():
        (project / file).write_text(content, encoding="utf-8")
    # The README says how to activate the environment; the other pages take that for granted.
    environment = reader(project, activated=name != README)

    done = do(script(page), project, environment | {"SHOP_OF_THE_READER": database_url})

    assert done.exit_code == 0, f"{name} stopped at its last command:\n{done.transcript}"
    assert "Traceback" not in done.transcript, done.transcript
    served = sum(commands(block).count(UP) for tag, block in page.blocks() if tag == "sh")
    assert len(done.opened) == served
    assert all("Dagster</title>" in shown for shown in done.opened)


def test_a_command_that_fails_ends_the_session_with_its_exit_code(tmp_path: Path) -> None:
    page = Page.of(
        "page", "1. Try:\n\n   ```sh\n   true\n   ingest --limit 0\n   echo on\n   ```\n"
    )

    done = do(script(page), tmp_path, reader(tmp_path, activated=True))

    assert done.exit_code == ExitCode.WRONG_INPUT
    assert done.transcript.startswith("$ true\n$ ingest --limit 0\n")
    assert "echo on" not in done.transcript


def test_a_file_that_a_page_shows_is_there_for_the_commands_below_it(tmp_path: Path) -> None:
    page = Page.of(
        "page",
        "```sql\n-- one.sql: why\nSELECT 'a $b'\n```\n```sh\ncat \\\n  one.sql\n```\n",
    )

    done = do(script(page), tmp_path, reader(tmp_path, activated=True))

    assert done.exit_code == 0
    assert done.transcript.endswith("-- one.sql: why\nSELECT 'a $b'\n")


def test_what_is_not_run_as_written_stands_in_the_documentation_still() -> None:
    written = {
        command
        for page in all_pages()
        for tag, block in page.blocks()
        if tag == "sh"
        for command in commands(block)
    }
    assert set(NOT_AS_WRITTEN) <= written
    assert all(it.reason for it in NOT_AS_WRITTEN.values())


def test_the_readers_files_are_those_that_the_documentation_takes_for_granted() -> None:
    text = "".join(script(page) for page in all_pages())
    assert [name for name in READERS_FILES if name not in text] == []


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_every_block_says_by_its_tag_whether_it_is_run_made_or_shown(page: Page) -> None:
    tags = {tag for tag, _ in page.blocks()}
    assert tags <= {"sh", *FILES, *SHOWN}


# --- what the pages name --------------------------------------------------------------------------


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_every_relative_link_and_image_leads_somewhere(page: Page) -> None:
    folder = (REPOSITORY / page.name).parent
    assert [link for link in page.links() if not _leads_somewhere(link, page, folder)] == []


def _leads_somewhere(link: str, page: Page, folder: Path) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return True  # the web is not ours
    target = (folder / parts.path).resolve()
    if not target.exists() or not target.is_relative_to(REPOSITORY):
        return False
    if not parts.fragment:
        return True
    other = Page.read(str(target.relative_to(REPOSITORY))) if parts.path else page
    return parts.fragment in map(_anchor, other.headings())


def _anchor(heading: str) -> str:
    """As GitHub makes them: lower case, punctuation gone, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("link", "good"),
    [
        ("docs/settings.md", True),
        ("docs/settings.md#from-the-environment", True),
        ("docs/settings.md#from-the-moon", False),
        ("docs/no-such-page.md", False),
        ("../elsewhere.md", False),
        ("https://www.postgresql.org/", True),
    ],
)
def test_a_link_is_good_if_its_page_and_its_heading_exist(link: str, *, good: bool) -> None:
    assert _leads_somewhere(link, Page.of(README, ""), REPOSITORY) is good


def shell_texts(page: Page) -> Iterator[str]:
    """Every text in which a command may be named: blocks line by line, and code in sentences."""
    yield from page.inline_code()
    for tag, block in page.blocks():
        if tag == "sh":
            yield from commands(block)
        elif tag in SHOWN:
            for line in block.splitlines():
                # `ingest` names commands in its output, explained two spaces further right.
                yield from re.findall(r"`([^`]+)`", line)
                yield re.split(r" {2,}", re.sub(r"^[\s$]*|`[^`]+`", "", line))[0]


def _command_line() -> TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


COMMAND_LINE = _command_line()
_INGEST = re.compile(r"(?<![\w.-])ingest(?![\w.:/-])([^)|;&\n]*)")


def unknown_words(text: str) -> list[str]:
    """The commands and options in `text` that `ingest` does not have."""
    if text.startswith("--"):
        option = text.split(maxsplit=1)[0].partition("=")[0]
        return [] if option in _all_options() else [option]
    calls = (shlex.split(words, comments=True) for words in _INGEST.findall(text))
    return [word for words in calls for word in _unknown(words)]


def _unknown(words: Sequence[str]) -> Iterator[str]:
    remaining = iter(words)
    options = _options(None)
    arguments: int | None = None  # None before the subcommand
    for word in remaining:
        name = word.partition("=")[0]
        if name.startswith("--"):
            if name not in options:
                yield name
            elif options[name] and "=" not in word:
                next(remaining, None)
        elif arguments is None:
            if word not in COMMAND_LINE.commands:
                yield word
                return
            options = _options(word)
            found = COMMAND_LINE.commands[word].params
            arguments = sum(it.param_type_name == "argument" for it in found)
        elif arguments:
            arguments -= 1
        else:
            yield word


def _options(subcommand: str | None) -> dict[str, bool]:
    """The options of a subcommand, or of `ingest` itself, and whether each takes a value."""
    command = COMMAND_LINE.commands[subcommand] if subcommand else COMMAND_LINE
    options = {
        name: not getattr(it, "is_flag", False)
        for it in command.params
        if it.param_type_name == "option"
        for name in it.opts
    }
    return {**options, "--help": False}


def _all_options() -> set[str]:
    return {name for it in (None, *COMMAND_LINE.commands) for name in _options(it)}


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_names_exists(page: Page) -> None:
    assert [word for text in shell_texts(page) for word in unknown_words(text)] == []


def test_every_command_is_in_the_readmes_table() -> None:
    named = " ".join(row["command"] for row in Page.read(README).table("command"))
    assert [name for name in COMMAND_LINE.commands if f"`ingest {name}" not in named] == []


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("ingest", []),
        ("ingestion_pipeline", []),
        ('eval "$(ingest env)"', []),
        ('.venv/bin/ingest search "a red --hat" --limit 3', []),
        ("ingest --settings FILE status --json", []),
        ("ingest statsu", ["statsu"]),
        ("ingest failures --again", ["--again"]),
        ("ingest verify everything", ["everything"]),
        ("ingest status && ingest stop", ["stop"]),
        ("--watch", []),
        ("--wach", ["--wach"]),
    ],
)
def test_a_command_or_option_that_does_not_exist_is_noticed(text: str, unknown: list[str]) -> None:
    assert unknown_words(text) == unknown


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = re.findall(r"^\.PHONY: (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = {
        target
        for page in all_pages()
        for text in shell_texts(page)
        for target in re.findall(r"^make ([\w.-]+)", text)
    }
    assert {"demo", "test"} <= named <= set(targets)


def test_every_file_of_the_repository_that_is_named_exists() -> None:
    named = {
        text
        for page in all_pages()
        for text in page.inline_code()
        if re.fullmatch(r"(sql|docs|ingestion_pipeline)/\S+", text)
    }
    assert "sql/product_texts.sql" in named
    assert [path for path in sorted(named) if not list(REPOSITORY.glob(path))] == []


# --- settings, exit codes, checks -----------------------------------------------------------------


def settings_defaults() -> dict[str, Any]:
    """Every setting by its dotted name, with its default; the aspects' settings are named once."""
    given_by_the_environment = {"file", "home", "model_cache", "database_url"}
    sections: dict[str, type[BaseModel]] = {"aspects": AspectSettings}
    for name, field in Settings.model_fields.items():
        if name not in given_by_the_environment | set(sections):
            assert isinstance(field.annotation, type)
            assert issubclass(field.annotation, BaseModel)
            sections[name] = field.annotation
    return {
        f"{section}.{name}": field.default
        for section, model in sections.items()
        for name, field in model.model_fields.items()
    }


def documented_settings() -> dict[str, str]:
    """Every setting of the documentation by its dotted name, with the default as written there."""
    documented = {}
    for row in Page.read("docs/settings.md").table("key"):
        sections = set(re.findall(r"`\[(\w+)", row["heading"]))
        # Below a heading of several sections, keys say themselves where they belong.
        prefix = f"{sections.pop()}." if len(sections) == 1 else ""
        documented[prefix + row["key"].strip("`")] = row["default"]
    return documented


def test_the_documented_settings_are_those_that_exist() -> None:
    assert set(documented_settings()) == set(settings_defaults())


def test_the_documented_settings_are_those_of_the_settings_file() -> None:
    text = (REPOSITORY / "ingestion.toml").read_text(encoding="utf-8")
    # Those without a default, and tables that need not be there, stand there as comments.
    text = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
    # The two examples of what all aspects share, as tables of their own.
    numbers = count()
    text = re.sub(
        r"^\[embedding\]", lambda _: f"[aspects.{next(numbers)}]", text, flags=re.MULTILINE
    )
    settings = tomllib.loads(text)
    aspects: dict[str, dict[str, Any]] = settings.pop("aspects")
    settings["aspects"] = dict(chain.from_iterable(it.items() for it in aspects.values()))
    assert set(documented_settings()) == {
        f"{section}.{key}" for section, keys in settings.items() for key in keys
    }


def test_a_documented_default_is_the_default() -> None:
    defaults = settings_defaults()
    written = {name: _value(text) for name, text in documented_settings().items()}
    different = {
        name: value
        for name, value in written.items()
        if value is not None and defaults[name] != value
    }
    assert different == {}
    assert written["work.lease_seconds"] == 300
    assert written["aspects.normalize"] is True


def _value(written: str) -> Any:
    """What a cell states as a value; None for a cell in words."""
    try:
        return tomllib.loads(f"value = {written.strip('`')}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def test_the_documented_exit_codes_are_those_of_the_program() -> None:
    rows = Page.read("docs/when-something-fails.md").table("exit code")
    assert [int(row["exit code"]) for row in rows] == sorted(ExitCode)


def test_the_documented_checks_are_those_that_verify_makes() -> None:
    from ingestion_pipeline.orchestration.embedding_checks import RANGES_MATERIALIZED

    rows = Page.read("docs/when-something-fails.md").table("check")
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row["check"])]
    assert len(documented) == len(set(documented))
    # The last is of Dagster's partitions, not of the table.
    assert set(documented) == {*CHECKS, RANGES_MATERIALIZED}

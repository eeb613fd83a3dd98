"""The command line: every command's name, options and help, and what an error looks like.

Only declarations are here, so that `--help` answers at once: what a command does is in a module of
its family, imported when the command runs.
"""

# ruff: noqa: ARG001 - the callbacks of --settings and --debug do all that these options do

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.exit_codes import ExitCode, exit_code
from ingestion_pipeline.errors import IngestionError, redacted
from ingestion_pipeline.stopping import held_back, ignore, interruptible, stop_request

app = typer.Typer(
    name="ingest",
    rich_markup_mode=None,  # Rich would double the time that --help takes
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _use_settings(file: Path | None) -> Path | None:
    if file is not None:
        os.environ["INGESTION_SETTINGS"] = str(file)
    return file


def _debug(wanted: bool) -> bool:
    if wanted:
        os.environ["INGESTION_DEBUG"] = "1"
    return wanted


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        callback=_use_settings,
        help="The settings file; else INGESTION_SETTINGS, else the nearest ingestion.toml.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.callback(invoke_without_command=True)
def ingest(
    context: typer.Context,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Take the first N products all the way, then stop."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be embedded; send nothing.")
    ] = False,
    as_json: AsJson = False,
    settings: SettingsFile = None,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_debug, help="Show where an unexpected error came from."),
    ] = False,
) -> int:
    """Re-embed a shop's catalogue into product_embeddings_v2, and prove the result.

    Without a command it runs the main job: preflight, then every product with something to do, then
    indexes, checks and the report. It can be stopped and run again at any time. A first run on your
    own shop: `ingest preflight`, `ingest --limit 5`, then `ingest`.

    DATABASE_URL names the shop's database; without it the embedded one is used.
    """
    if context.invoked_subcommand is not None:
        if dry_run:
            raise typer.BadParameter(f"--dry-run is not for {context.invoked_subcommand}.")
        if limit is not None or as_json:
            # Before the command they would be swallowed, and the command would do something else.
            option = "--json" if as_json else "--limit"
            raise typer.BadParameter(f"{option} goes after {context.invoked_subcommand}.")
        return ExitCode.OK
    if dry_run:
        from ingestion_pipeline.cli import dry_run as family

        return family.dry_run(limit=limit, as_json=as_json)
    from ingestion_pipeline.cli import main_job

    return main_job.ingest(limit=limit, as_json=as_json)


@app.command()
def preflight(as_json: AsJson = False, settings: SettingsFile = None) -> int:
    """Look whether a run can succeed: go or no go.

    Database, models, products and disk are looked at, and five products are taken all the way.
    """
    from ingestion_pipeline.cli import checks

    return checks.preflight(as_json=as_json)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    as_json: AsJson = False,
    settings: SettingsFile = None,
) -> int:
    """Say what is done and what to run next."""
    from ingestion_pipeline.cli import status as family

    return family.status(watch=watch, as_json=as_json)


@app.command()
def verify(as_json: AsJson = False, settings: SettingsFile = None) -> int:
    """Check product_embeddings_v2 as it is now."""
    from ingestion_pipeline.cli import checks

    return checks.verify(as_json=as_json)


@app.command()
def failures(
    retry: Annotated[
        bool, typer.Option("--retry", help="Make them stale again, then run them.")
    ] = False,
    as_json: AsJson = False,
    settings: SettingsFile = None,
) -> int:
    """List the products that failed, with reasons."""
    from ingestion_pipeline.cli import failures as family

    return family.failures(retry=retry, as_json=as_json)


@app.command()
def retry(as_json: AsJson = False, settings: SettingsFile = None) -> int:
    """Run only what failed or was never finished."""
    from ingestion_pipeline.cli import main_job

    return main_job.retry(as_json=as_json)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What a customer might type.")],
    limit: Annotated[int, typer.Option(metavar="K", min=1, max=100, help="Products to show.")] = 5,
    as_json: AsJson = False,
    settings: SettingsFile = None,
) -> int:
    """Search the re-embedded catalogue."""
    from ingestion_pipeline.cli import search as family

    return family.search(text, limit=limit, as_json=as_json)


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help=".jsonl, .csv or .parquet, each also with .gz")],
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table to make; else the settings'.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the products that are there.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Replace them on a server of your own, too.")
    ] = False,
    as_json: AsJson = False,
    settings: SettingsFile = None,
) -> int:
    """Make a products table from a file."""
    from ingestion_pipeline.cli import load as family

    return family.load(file, table=table, replace=replace, yes=yes, as_json=as_json)


@app.command()
def models(
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch what is missing and verify it.")
    ] = False,
    as_json: AsJson = False,
    settings: SettingsFile = None,
) -> int:
    """Show the models and whether they are here."""
    from ingestion_pipeline.cli import models as family

    return family.models(fetch=fetch, as_json=as_json)


@app.command()
def env(settings: SettingsFile = None) -> int:
    """Print exports for psql and dagster.

    eval "$(ingest env)" puts them into the shell.
    """
    from ingestion_pipeline.cli import services

    return services.env()


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the Dagster UI.")] = 3000,
    settings: SettingsFile = None,
) -> int:
    """Start everything and serve the Dagster UI.

    It is served on 127.0.0.1 only, until Ctrl-C.
    """
    from ingestion_pipeline.cli import services

    return services.up(port=port)


@app.command()
def down(settings: SettingsFile = None) -> int:
    """Stop the embedded PostgreSQL; its data stay."""
    from ingestion_pipeline.cli import services

    return services.down()


@app.command()
def demo(as_json: AsJson = False, settings: SettingsFile = None) -> int:
    """Try everything on a small shop of our own.

    It works on the embedded PostgreSQL only. A second time it embeds nothing again.
    """
    from ingestion_pipeline.cli import demo as family

    return family.demo(as_json=as_json)


def main() -> None:
    """The console entry point."""
    code = run(sys.argv[1:])
    ignore()  # Python's own last moments would answer an impatient Ctrl-C with a trace
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors are told on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our marks shows others
    with stop_request() as stop, held_back():  # whatever happens is told to its end
        try:
            with interruptible():
                code = app(arguments, prog_name="ingest", standalone_mode=False)
        except KeyboardInterrupt:
            return _told(stop.error(), arguments)
        except IngestionError as error:
            return _told(error, arguments)
        except typer.TyperException as error:
            return _told_usage(error)
        except Exception as error:  # noqa: BLE001 - the last line of defence, and it tells where to look
            return _told_unexpected(error, arguments)
        if code == ExitCode.INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            return _told(stop.error(), arguments)
        return int(code or ExitCode.OK)


def _told(error: IngestionError, arguments: list[str]) -> int:
    code = exit_code(error)
    message = redacted(str(error))
    _complain(message)
    if "--json" in arguments:
        terminal.print_json(
            {"error": {"kind": type(error).__name__, "message": message}, "exit_code": code}
        )
    return code


def _told_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ingest"
    _complain(f"{error.format_message()}\n→ {command} --help")
    return ExitCode.WRONG_INPUT


def _told_unexpected(error: Exception, arguments: list[str]) -> int:
    ran_out = _what_ran_out(error)
    if ran_out is not None:
        return _told(ran_out, arguments)
    trace = redacted("".join(traceback.format_exception(error)))
    message = redacted(f"{type(error).__name__}: {error}")
    if os.environ.get("INGESTION_DEBUG"):
        sys.stderr.write(trace)
        where = ""
    else:
        try:
            where = f"\n→ Where it came from is in {_written(trace)}; --debug shows it."
        except OSError as unwritten:
            where = f"\n→ --debug shows where it came from ({unwritten}, so no file holds it)."
    _complain(f"Something unexpected happened: {message}{where}")
    if "--json" in arguments:
        terminal.print_json(
            {"error": {"kind": "Unexpected", "message": message}, "exit_code": ExitCode.UNEXPECTED}
        )
    return ExitCode.UNEXPECTED


def _what_ran_out(error: Exception) -> IngestionError | None:
    """What to say where this machine's disk or memory ran out; None where it did not."""
    from ingestion_pipeline.disk import disk_full_beside
    from ingestion_pipeline.memory import out_of_memory
    from ingestion_pipeline.settings import load_settings

    if isinstance(error, MemoryError):
        return out_of_memory(error, "Let other programs give some back.")
    try:
        return disk_full_beside(error, load_settings())
    except IngestionError:
        return None  # without settings nothing is known of our places


def _written(trace: str) -> Path:
    """Keep the trace in a file that only the user can read."""
    descriptor, name = tempfile.mkstemp(prefix="ingest-error-", suffix=".txt", text=True)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        file.write(trace)
    return Path(name)


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody hears it where the terminal was closed
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()

"""`ingest env`, `up` and `down`: the processes beside the pipeline, and how to reach them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import (
    Environment,
    data_directory_of,
    database_url,
    prepare,
    workspace_file,
)
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database import local_server
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.settings import load_settings

LOOPBACK = "127.0.0.1"


def env() -> int:
    """Print what was found as exports; what was given stays the user's, unprinted.

    A DATABASE_URL that the user set may hold a password, and is in the environment already.
    """
    environment = prepare(dagster=True, report=terminal.note)
    if "DATABASE_URL" not in environment.variables:
        print("# DATABASE_URL is the one that you have set.")
    for name, value in environment.variables.items():
        print(f"export {name}={shlex.quote(value)}")
    folders = _folders_to_add()
    if folders:
        added = ":".join(map(shlex.quote, folders))
        print(f'export PATH={added}:"$PATH"')
    return ExitCode.OK


def _folders_to_add() -> list[str]:
    """Where psql and dagster lie, for each that PATH does not lead to."""
    candidates = {
        "psql": local_server.programs(),
        "dagster": Path(sys.executable).parent,
    }
    return [
        str(folder)
        for program, folder in candidates.items()
        if shutil.which(program) is None and (folder / program).exists()
    ]


def up(*, port: int) -> int:
    """Become `dagster dev`; the embedded server goes on when it ends."""
    _check_free(port)
    environment = prepare(dagster=True, report=terminal.note)
    _end_orphaned_runs()
    terminal.say(f"Dagster UI   http://{LOOPBACK}:{port}   (in some ten seconds)")
    terminal.say(f"Database     {_shown(environment)}")
    terminal.say(f"Dagster      {os.environ['DAGSTER_HOME']}")
    terminal.say()
    terminal.say("Ctrl-C stops the UI. `ingest down` stops the embedded PostgreSQL.", style="dim")
    sys.stdout.flush()
    # A shell starts background jobs with SIGINT ignored; Dagster would then ignore SIGTERM too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Beside a dagster.yaml that is not the one in DAGSTER_HOME, Dagster warns of it.
    os.chdir(os.environ["DAGSTER_HOME"])
    os.execv(  # noqa: S606 - Dagster takes this process over, and with it Ctrl-C
        sys.executable,
        [
            # Its advice to use another tool is of no use to whoever runs this.
            *(sys.executable, "-W", "ignore:Function `dev_command` is superseded"),
            *("-m", "dagster", "dev", "--log-level", "warning"),
            *("--workspace", str(workspace_file(environment.settings))),
            *("--host", LOOPBACK, "--port", str(port)),
        ],
    )


def _end_orphaned_runs() -> None:
    """Runs of a deployment that was killed would look alive in the UI for ever."""
    from ingestion_pipeline.orchestration.in_process import end_orphaned_runs

    orphans = end_orphaned_runs()
    if orphans:
        terminal.note(f"{terminal.counted(len(orphans), 'run')} ended: the process is gone")


def _shown(environment: Environment) -> str:
    if environment.embedded:
        name = urlsplit(database_url(environment.settings)).path.strip("/")
        return "the embedded PostgreSQL" + (f", database {name}" if name else "")
    return "as DATABASE_URL says"


def _check_free(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"Port {port} on this machine cannot be used: {error.strerror}.\n"
                f"→ Stop what runs there, or take another: ingest up --port {port % 65535 + 1}"
            ) from error


def down() -> int:
    """Stop the embedded server, whose data stay."""
    data_directory = data_directory_of(load_settings())
    if local_server.attach(data_directory) is None:
        terminal.say(f"The embedded PostgreSQL in {data_directory} is not running.")
        return ExitCode.OK
    local_server.stop(data_directory)
    terminal.say(f"The embedded PostgreSQL in {data_directory} is stopped; its data stay.")
    return ExitCode.OK

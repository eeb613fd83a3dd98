"""The ground a command stands on: which database, which Dagster, and that they are there.

Without `DATABASE_URL` the embedded server is started, or attached to, and its database `ecommerce`
is the shop's. Dagster's storage is `DAGSTER_PG_URL`, else the database `dagster` of the embedded
server, so that a shop's own server never gets tables of Dagster's. Everything found is written to
the process's environment, where Dagster and child processes read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path

from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.disk import full_disk_told
from ingestion_pipeline.errors import SettingsError
from ingestion_pipeline.settings import Settings, load_settings

SHOP_DATABASE = "ecommerce"
DAGSTER_DATABASE = "dagster"

# The location's name is part of what a schedule's state is filed under: always the same one.
_WORKSPACE = """\
# Written by `ingest`: what `dagster dev` loads.
load_from:
  - python_module:
      module_name: ingestion_pipeline.orchestration.definitions
      location_name: ingestion_pipeline
"""


@dataclass(frozen=True)
class Environment:
    """A command's ground.

    Attributes:
        settings: with `database_url` filled in.
        embedded: whether the shop's database is on the embedded server.
        variables: what was found rather than given: environment variables and their values.

    """

    settings: Settings
    embedded: bool
    variables: dict[str, str]


def prepare(
    *, dagster: bool = False, report: Callable[[str], None] = lambda _: None
) -> Environment:
    """Find or start the shop's database and, where `dagster`, Dagster's storage and home.

    `report` is told what takes a moment. Raises SettingsError, DatabaseUnavailableError,
    DiskFullError.
    """
    given = load_settings()
    variables = {"INGESTION_HOME": str(given.home)}
    if given.file:
        variables["INGESTION_SETTINGS"] = str(given.file)
    with full_disk_told(given):
        embedded, found = _found(given, dagster=dagster, report=report)
    os.environ.update(variables | found)
    return Environment(load_settings(), embedded, variables | found)


def _found(
    given: Settings, *, dagster: bool, report: Callable[[str], None]
) -> tuple[bool, dict[str, str]]:
    """Whether the shop's database is embedded, and the variables that lead to what is there now."""
    data_directory = data_directory_of(given)
    variables: dict[str, str] = {}
    url = given.database_url.get_secret_value() if given.database_url else None
    embedded = url is None or _is_embedded(url, data_directory)
    if embedded:
        server = _started(data_directory, report)
        _ensure_shop_database(server)
        if url is None:
            variables["DATABASE_URL"] = server.url(SHOP_DATABASE)
    if dagster:
        variables |= _dagster_variables(given, data_directory, report)
    return embedded, variables


def reach(settings: Settings) -> None:
    """Raise what keeps the shop's database from answering, before Dagster's seconds of import."""
    from ingestion_pipeline.database.full_disk import open_session

    open_session(settings, database_url(settings)).close()


def database_url(settings: Settings) -> str:
    """The shop's URL, password and all; `prepare` gave or found one."""
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set.")
    return settings.database_url.get_secret_value()


def data_directory_of(settings: Settings) -> Path:
    """Where the embedded server's data lie."""
    return settings.home / "postgres"


def workspace_file(settings: Settings) -> Path:
    """What `dagster dev --workspace` loads; there once `prepare` has seen to Dagster."""
    return settings.home / "workspace.yaml"


def _started(data_directory: Path, report: Callable[[str], None]) -> LocalServer:
    server = local_server.attach(data_directory)
    if server is not None:
        return server
    report(f"Starting the embedded PostgreSQL in {data_directory}")
    return local_server.start(data_directory)


def _is_embedded(url: str, data_directory: Path) -> bool:
    """Whether `url` leads to the embedded server, as after `eval "$(ingest env)"`."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        host = conninfo_to_dict(url).get("host")
    except psycopg.ProgrammingError:
        return False  # no connection string at all: connecting says so, in words
    if not isinstance(host, str) or not host.startswith("/") or not data_directory.is_dir():
        return False
    # Only a server that runs knows its socket: a long path is moved to a short one.
    return Path(host) == local_server.start(data_directory).socket_directory


def _ensure_shop_database(server: LocalServer) -> None:
    from ingestion_pipeline.database import queries
    from ingestion_pipeline.database.connection import connect, database_errors

    server.create_database(SHOP_DATABASE)
    statement = queries.Queries(tables={}).compose("create_vector_extension")
    with connect(server.url(SHOP_DATABASE)) as connection, database_errors():
        connection.execute("SET client_min_messages = warning")  # "already exists" is the rule
        connection.execute(statement)


def _dagster_variables(
    settings: Settings, data_directory: Path, report: Callable[[str], None]
) -> dict[str, str]:
    variables: dict[str, str] = {}
    settings.home.mkdir(parents=True, exist_ok=True)
    workspace_file(settings).write_text(_WORKSPACE, encoding="utf-8")
    storage = os.environ.get("DAGSTER_PG_URL")
    if not storage:
        server = _started(data_directory, report)
        database = _dagster_database(settings, server)
        server.create_database(database)
        variables["DAGSTER_PG_URL"] = server.sqlalchemy_url(database)
    elif storage.startswith(("postgresql://", "postgres://")):
        raise SettingsError(
            "DAGSTER_PG_URL names no driver, and Dagster would fail at its first run.\n"
            "→ Begin it with postgresql+psycopg2:// instead."
        )
    home = os.environ.get("DAGSTER_HOME")
    if home:
        if not (Path(home) / "dagster.yaml").is_file():
            raise SettingsError(
                f"DAGSTER_HOME is {home}, and there is no dagster.yaml in it.\n"
                "→ Put one there, or unset DAGSTER_HOME to use this project's."
            )
        return variables
    folder = settings.home / "dagster"
    folder.mkdir(exist_ok=True)
    _link_dagster_yaml(folder / "dagster.yaml")
    return variables | {"DAGSTER_HOME": str(folder)}


def _dagster_database(settings: Settings, server: LocalServer) -> str:
    """A storage for each shop: ranges and runs of one must not be taken for another's."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    url = settings.database_url.get_secret_value() if settings.database_url else None
    if url is None or url == server.url(SHOP_DATABASE):
        return DAGSTER_DATABASE
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return DAGSTER_DATABASE  # connecting says what is wrong with it
    place = "/".join(str(parts.get(name)) for name in ("host", "port", "dbname"))
    return f"{DAGSTER_DATABASE}_{sha256(place.encode()).hexdigest()[:12]}"


def _link_dagster_yaml(link: Path) -> None:
    """Make `link` lead to the project's dagster.yaml; a file that somebody put there stays."""
    target = _packaged_dagster_yaml()
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()  # from before the project was moved
    if not link.exists():
        link.symlink_to(target)


def _packaged_dagster_yaml() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("ingestion_pipeline")))
    inside = package / "dagster.yaml"
    return inside if inside.is_file() else package.parent / "dagster.yaml"

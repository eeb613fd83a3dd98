"""The ground under a command: the embedded server, what is exported, and what stays unsaid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from ingestion_pipeline.cli import environment as ground
from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline_tests.cli.conftest import PROGRAM, Ingest, execute
from ingestion_pipeline_tests.conftest import REPOSITORY

SHELL = shutil.which("bash") or "/bin/bash"


def _shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a shell that knows nothing but these variables."""
    return subprocess.run(
        [SHELL, "-c", f'eval "$({PROGRAM} env)"; {script}'],
        env=variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an awkward name and a server of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="it's my shop "))
    monkeypatch.setenv("INGESTION_HOME", str(folder))
    try:
        yield folder
    finally:
        local_server.stop(folder / "postgres", immediate=True)
        shutil.rmtree(folder)


@pytest.mark.usefixtures("environment")
def test_the_exports_are_all_that_psql_and_dagster_need(own_home: Path) -> None:
    script = """
        psql "$DATABASE_URL" -AtX -c "SELECT to_regtype('vector')"
        psql "${DATABASE_URL/ecommerce/dagster}" -AtX -c "SELECT current_database()"
        dagster run list > /dev/null && echo runs
    """
    done = _shell(script, INGESTION_HOME=str(own_home), HOME=str(own_home), PATH="/usr/bin:/bin")
    assert done.stdout.split() == ["vector", "dagster", "runs"], done.stderr
    # With no PATH at all, both are found where the exports lead.
    nothing = _shell("command -v psql dagster", INGESTION_HOME=str(own_home), PATH="")
    assert [Path(line).name for line in nothing.stdout.split()[-2:]] == ["psql", "dagster"]


def test_the_embedded_server_is_known_again_by_its_url_and_started_again(
    ingest: Ingest, own_home: Path, monkeypatch: pytest.MonkeyPatch, catalogue: Path
) -> None:
    assert ingest("load", catalogue).code == 0
    url = os.environ["DATABASE_URL"]
    assert ingest("down").out.startswith(f"The embedded PostgreSQL in {own_home}")
    assert local_server.attach(own_home / "postgres") is None
    assert "is not running" in ingest("down").out

    # As in a shell after `eval "$(ingest env)"`, when the machine has been down since.
    monkeypatch.setenv("DATABASE_URL", url)
    assert ingest("status", "--json").document["products"] == 12
    refused = ingest("load", catalogue)
    assert "--replace" in refused.err
    assert "--yes" not in refused.err  # it is the embedded one, not somebody's live shop


@pytest.mark.usefixtures("embedded")
def test_env_prints_no_secret_that_it_was_given(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://joe:s3cret@db.example/shop")
    answer = ingest("env")
    assert answer.code == 0
    assert "s3cret" not in answer.out + answer.err
    assert "# DATABASE_URL" in answer.out
    assert "export DAGSTER_PG_URL=" in answer.out
    assert "export DAGSTER_HOME=" in answer.out


@pytest.mark.usefixtures("dagster")
def test_a_shop_of_ones_own_needs_no_embedded_server(ingest: Ingest, shop_url: str) -> None:
    home = Path(os.environ["INGESTION_HOME"])
    assert ingest("status").code == 0
    assert ingest("env").code == 0
    assert not (home / "postgres").exists()
    assert execute(shop_url, "SELECT to_regnamespace('ingestion')") == [(None,)]


def test_dagster_reads_the_projects_yaml_unless_somebody_put_another_there(
    embedded: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", embedded.url("ecommerce"))
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql+psycopg2://localhost/dagster")
    monkeypatch.setenv("INGESTION_HOME", str(tmp_path / "home"))
    yaml = tmp_path / "home" / "dagster" / "dagster.yaml"
    ground.prepare(dagster=True)
    assert yaml.samefile(REPOSITORY / "dagster.yaml")

    monkeypatch.delenv("DAGSTER_HOME")
    yaml.unlink()
    yaml.symlink_to(tmp_path / "where-the-project-was" / "dagster.yaml")
    ground.prepare(dagster=True)
    assert yaml.samefile(REPOSITORY / "dagster.yaml")

    monkeypatch.delenv("DAGSTER_HOME")
    yaml.unlink()
    yaml.write_text("telemetry: {enabled: false}\n")
    ground.prepare(dagster=True)
    assert yaml.read_text() == "telemetry: {enabled: false}\n"
    assert ground.workspace_file(load_settings()).is_file()


def test_dagster_loads_the_same_from_a_checkout_and_from_here(
    ingest: Ingest, own_home: Path
) -> None:
    assert ingest("env").code == 0
    written, in_checkout = (
        [
            line
            for line in folder.joinpath("workspace.yaml").read_text().splitlines()
            if line[0] != "#"
        ]
        for folder in (own_home, REPOSITORY)
    )
    assert written == in_checkout


def test_up_says_which_port_is_taken_and_starts_nothing(ingest: Ingest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = ingest("up", "--port", str(port))
    assert answer.code == 2
    assert f"Port {port}" in answer.err
    assert "--port" in answer.err.splitlines()[-1]
    assert not Path(os.environ["INGESTION_HOME"]).exists()


def test_each_shop_has_a_dagster_storage_of_its_own(tmp_path: Path) -> None:
    server = LocalServer(tmp_path, tmp_path)
    home = Settings(home=tmp_path, model_cache=tmp_path)

    def storage_of(url: str | None) -> str:
        given = SecretStr(url) if url else None
        settings = home.model_copy(update={"database_url": given})
        return ground._dagster_database(settings, server)

    assert storage_of(None) == storage_of(server.url("ecommerce")) == "dagster"
    here, there = "postgresql://me:secret@db:5432/shop", "postgresql://me:secret@db:5432/other"
    assert len({storage_of(here), storage_of(there), "dagster"}) == 3
    assert storage_of(here) == storage_of("postgresql://you:other@db:5432/shop")

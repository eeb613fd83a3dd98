"""Commands and runs that are told to stop, and deployments that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.embeddings import EmbeddingStore
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.embedding.pinned_models import ALL_MINILM_L6_V2
from ingestion_pipeline.errors import InterruptedRunError, TerminatedRunError
from ingestion_pipeline.orchestration import runs
from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.failures import range_states, unfinished_ranges
from ingestion_pipeline.orchestration.in_process import end_orphaned_runs
from ingestion_pipeline.orchestration.runs import PROCESS_TAG, end_orphans, process_tag
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.settings import load_settings
from ingestion_pipeline.verdict import Verdict
from ingestion_pipeline.work import Lease
from ingestion_pipeline_tests.orchestration import known_models
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, REPOSITORY, SmallShop
from ingestion_pipeline_tests.orchestration.serving import served, until

COMMAND = [sys.executable, "-m", "ingestion_pipeline_tests.orchestration.ingest_command"]
REAL_COMMAND = [sys.executable, "-m", "ingestion_pipeline.cli.app"]
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
LONGEST_BATCH = 5  # texts: 16 tokens a batch, and no text has fewer than 3
SECONDS_BETWEEN_LOOKS_AT_THE_QUEUE = 6  # a run that may begin has begun by then
SECONDS_TO_STOP = 20  # far more than it takes: the machine may have much else to do

# A session's leader gets its terminal, and then becomes another program.
TAKE_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)

INDEXES_THAT_WAIT = """
SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%CREATE INDEX%' AND wait_event_type = 'Lock'
"""

TERMINATE = """mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    told: str
    seconds: float


def ended(process: subprocess.Popen[str], *numbers: signal.Signals, pause: float = 0.0) -> Ended:
    """Send signals, `pause` seconds apart, and wait for the end."""
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    told, _ = process.communicate(timeout=60)
    return Ended(process.returncode, told, time.monotonic() - began)


def started(command: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read_all(screen: int) -> None:
    """Look at a terminal until it is gone."""
    with suppress(OSError):
        while os.read(screen, 1 << 16):
            pass


def at_work_on(shop: SmallShop, key: str) -> bool:
    begun = shop.value("SELECT to_regclass('ingestion.leases') IS NOT NULL")
    query = "SELECT range_key FROM ingestion.leases"
    return bool(begun) and (key,) in shop.connection.execute(query).fetchall()


def leases(shop: SmallShop) -> object:
    return shop.value("SELECT count(*) FROM ingestion.leases")


def statuses(shop: SmallShop, job: str) -> list[str]:
    return [run.status.value for run in shop.runs(job)]


@pytest.mark.usefixtures("settings_file")
@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_command_that_is_told_to_stop_does_so_within_seconds_and_leaves_nothing_behind(
    small_shop: SmallShop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    record = tmp_path / "sent"
    monkeypatch.setenv(known_models.RECORD, str(record))
    monkeypatch.setenv(known_models.SECONDS, "0.5")
    with started() as process:
        until(lambda: at_work_on(small_shop, KEYS[2]), "the third range")
        end = ended(process, number)

    assert end.code == code
    assert "the same command carries on" in end.told
    assert "Traceback" not in end.told
    assert end.seconds < SECONDS_TO_STOP
    assert leases(small_shop) == 0
    assert statuses(small_shop, "preflight") == ["SUCCESS"]
    assert statuses(small_shop, "reingest") == ["CANCELED"]
    # What was not begun has not failed.
    states = range_states(small_shop.instance, KEYS)
    assert list(states.values()) == ["done", "done", "missing", "missing"]

    small_shop.ingest()

    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS
    assert unfinished_ranges(small_shop.instance, KEYS) == {}
    sent = [*record.read_text().splitlines(), *small_shop.models.texts]
    assert len(sent) - len(set(sent)) <= LONGEST_BATCH


@pytest.mark.usefixtures("settings_file")
def test_a_second_and_a_third_ctrl_c_do_not_disturb_the_cleaning_up(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(known_models.SECONDS, "0.5")
    with started() as process:
        until(lambda: at_work_on(small_shop, KEYS[2]), "the third range")
        end = ended(process, *[signal.SIGINT] * 20, pause=0.03)

    assert end.code == 130
    assert "Traceback" not in end.told
    assert leases(small_shop) == 0
    assert statuses(small_shop, "reingest") == ["CANCELED"]


@pytest.mark.usefixtures("settings_file")
def test_a_command_whose_terminal_is_closed_gives_its_range_back(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(known_models.SECONDS, "0.5")
    screen, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", TAKE_THE_TERMINAL, *COMMAND],
        cwd=REPOSITORY,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        drawn = threading.Thread(target=read_all, args=[screen])
        drawn.start()
        until(lambda: at_work_on(small_shop, KEYS[2]), "the third range")
        os.close(screen)
        code = process.wait(30)
        drawn.join()

    assert code == 143
    assert leases(small_shop) == 0
    assert statuses(small_shop, "reingest") == ["CANCELED"]


@pytest.mark.usefixtures("settings_file")
def test_a_command_stopped_while_the_model_loads_has_failed_no_range(
    small_shop: SmallShop, tmp_path: Path
) -> None:
    model = ALL_MINILM_L6_V2
    settings = load_settings()
    weights.fetch(model.name, revision=None, path=None, cache=settings.model_cache)
    (tmp_path / "ingestion.toml").write_text(
        "".join(
            f'[aspects.{aspect}]\nmodel = "{model.name}"\ndimensions = {model.dimensions}\n'
            for aspect in Aspect
        )
    )
    with started(REAL_COMMAND) as process:
        assert process.stdout is not None
        while f"Loading {model.name}" not in (line := process.stdout.readline()):
            assert line, "the model was never loaded"
        end = ended(process, signal.SIGTERM)

    assert end.code == 143
    assert "Traceback" not in end.told
    assert leases(small_shop) == 0
    assert statuses(small_shop, "preflight") == ["CANCELED"]
    assert range_states(small_shop.instance, KEYS) == dict.fromkeys(KEYS, "missing")
    assert small_shop.value("SELECT count(*) FROM ingestion.failed_products") == 0


@pytest.mark.usefixtures("settings_file")
def test_a_command_stopped_while_it_builds_an_index_gives_the_statement_up(
    small_shop: SmallShop,
) -> None:
    small_shop.ingest(limit=1)
    assert small_shop.settings.database_url is not None
    with psycopg.connect(small_shop.settings.database_url.get_secret_value()) as writer:
        # Readers and writers of rows go on, and an index has to wait.
        writer.execute("LOCK TABLE product_embeddings_v2 IN ROW EXCLUSIVE MODE")
        with started() as process:
            until(lambda: small_shop.value(INDEXES_THAT_WAIT) == 1, "the index")
            end = ended(process, signal.SIGINT)

        assert small_shop.value(INDEXES_THAT_WAIT) == 0
    assert end.code == 130
    assert end.seconds < SECONDS_TO_STOP
    assert statuses(small_shop, "finish") == ["CANCELED"]
    assert set(range_states(small_shop.instance, KEYS).values()) == {"done"}


def test_a_signal_between_two_steps_of_dagsters_cancels_the_run_all_the_same(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Verdict) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    # A verdict is told once the check is over.
    monkeypatch.setattr(small_shop.heard, "verdict", stop)

    with pytest.raises(TerminatedRunError, match="carries on"):
        small_shop.ingest()

    assert statuses(small_shop, "preflight") == ["CANCELED"]


def test_a_signal_while_dagster_makes_a_run_waits_until_it_is_made(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = dg.DagsterInstance.create_run_for_job

    def interrupted(*arguments: Any, **options: Any) -> dg.DagsterRun:
        os.kill(os.getpid(), signal.SIGTERM)
        return create(*arguments, **options)

    monkeypatch.setattr(dg.DagsterInstance, "create_run_for_job", interrupted)

    with pytest.raises(TerminatedRunError):
        small_shop.ingest()

    assert statuses(small_shop, "preflight") == ["CANCELED"]
    assert small_shop.heard.verdicts == []


def test_an_interruption_right_after_a_claim_gives_the_range_back(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = EmbeddingStore.claim

    def cut_off(store: EmbeddingStore, *arguments: object) -> Lease:
        lease = claim(store, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        return lease

    monkeypatch.setattr(EmbeddingStore, "claim", cut_off)

    with pytest.raises(InterruptedRunError):
        small_shop.ingest()

    assert leases(small_shop) == 0


def test_a_second_signal_while_the_range_is_given_back_does_not_keep_it(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Progress) -> None:
        # From here on the range is given back only because of this.
        monkeypatch.setattr(EmbeddingStore, "release", interrupted)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted(store: EmbeddingStore, lease: Lease) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        release(store, lease)

    release = EmbeddingStore.release
    small_shop.heard.on_progress = stop

    # The first signal tells what happened.
    with pytest.raises(InterruptedRunError, match=r"^Stopped\."):
        small_shop.ingest()

    assert leases(small_shop) == 0
    assert statuses(small_shop, "reingest") == ["CANCELED"]


def test_signals_do_what_they_did_once_a_command_is_over(ingested_shop: SmallShop) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    ingested_shop.ingest()

    assert [signal.getsignal(number) for number in numbers] == before


# --- runs that Dagster starts ---------------------------------------------------------------------


@pytest.mark.usefixtures("settings_file")
def test_a_run_terminated_in_the_ui_is_canceled_and_gives_its_range_back(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shop.ingest(limit=1)
    monkeypatch.setenv(known_models.SECONDS, "1")

    with served() as deployment:
        run_id = deployment.launch("reingest", tags_of(KEYS))
        until(lambda: at_work_on(small_shop, KEYS[1]), "the second range")
        answer = deployment.ask(TERMINATE, id=run_id)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess"

        until(lambda: run_of(small_shop, run_id).is_finished, "the end of the run", 30)

    assert run_of(small_shop, run_id).status == dg.DagsterRunStatus.CANCELED
    assert leases(small_shop) == 0
    states = range_states(small_shop.instance, KEYS)
    assert list(states.values()) == ["done", "missing", "missing", "missing"]


@pytest.mark.usefixtures("settings_file")
def test_after_the_whole_deployment_is_killed_the_next_start_lets_the_queue_go_on(
    small_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shop.ingest(limit=1)
    monkeypatch.setenv(known_models.SECONDS, "5")
    with served() as deployment:
        at_work = deployment.launch("reingest", tags_of(KEYS[:2]))
        until(lambda: at_work_on(small_shop, KEYS[0]), "the first range")
        queued = deployment.launch("reingest", tags_of(KEYS[2:]))
        time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_QUEUE)
        deployment.kill()
    assert run_of(small_shop, at_work).status == dg.DagsterRunStatus.STARTED
    assert run_of(small_shop, queued).status == dg.DagsterRunStatus.QUEUED

    ended_runs = end_orphaned_runs()

    assert ended_runs == [at_work]
    assert run_of(small_shop, at_work).status == dg.DagsterRunStatus.FAILURE
    monkeypatch.setenv(known_models.SECONDS, "0")
    with served():
        until(lambda: run_of(small_shop, queued).is_finished, "the queued run")
    assert run_of(small_shop, queued).status == dg.DagsterRunStatus.SUCCESS
    assert {"failed", "missing"}.isdisjoint(
        range_states(small_shop.instance, KEYS)[key] for key in KEYS[2:]
    )


def test_runs_whose_process_is_gone_are_ended_and_free_their_pools(
    ingested_shop: SmallShop,
) -> None:
    dead = {PROCESS_TAG: process_tag()[PROCESS_TAG].replace(f"/{os.getpid()}/", "/999999999/")}
    storage = ingested_shop.instance.event_log_storage
    storage.set_concurrency_slots("embedding", 1)
    statuses = [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    orphans = [new_run(ingested_shop, status, dead) for status in statuses]
    at_work = new_run(ingested_shop, dg.DagsterRunStatus.STARTED, process_tag())
    storage.claim_concurrency_slot("embedding", orphans[2], "a_step")

    ended_runs = end_orphans(ingested_shop.instance)

    assert sorted(ended_runs) == sorted(orphans)
    after = [run_of(ingested_shop, run_id).status.value for run_id in [*orphans, at_work]]
    assert after == ["FAILURE", "FAILURE", "FAILURE", "CANCELED", "STARTED"]
    assert storage.get_concurrency_info("embedding").active_run_ids == set()


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
def test_the_retry_of_a_killed_run_is_not_taken_for_dead_by_the_tag_that_it_inherits(
    ingested_shop: SmallShop, status: dg.DagsterRunStatus
) -> None:
    dead = {PROCESS_TAG: process_tag()[PROCESS_TAG].replace(f"/{os.getpid()}/", "/999999999/")}
    killed = new_run(ingested_shop, dg.DagsterRunStatus.STARTED, dead)
    retry = ingested_shop.instance.create_run_for_job(
        defs.resolve_job_def("reingest"),
        status=status,
        tags=dead,
        parent_run_id=killed,
        root_run_id=killed,
    ).run_id

    assert end_orphans(ingested_shop.instance) == [killed]
    assert run_of(ingested_shop, retry).status == status


def test_a_run_that_nobody_took_up_is_ended_once_it_has_had_its_time(
    ingested_shop: SmallShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run(ingested_shop, dg.DagsterRunStatus.NOT_STARTED, {})
    start = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "reingest")
    ingested_shop.instance.report_dagster_event(start, run_id)

    assert end_orphans(ingested_shop.instance) == []
    monkeypatch.setattr(runs, "_NAMED_WITHIN_SECONDS", 0)
    assert end_orphans(ingested_shop.instance) == [run_id]


def new_run(shop: SmallShop, status: dg.DagsterRunStatus, tags: Mapping[str, str]) -> str:
    job = defs.resolve_job_def("reingest")
    return shop.instance.create_run_for_job(job, status=status, tags=dict(tags)).run_id


def run_of(shop: SmallShop, run_id: str) -> dg.DagsterRun:
    run = shop.instance.get_run_by_id(run_id)
    assert run is not None
    return run


def tags_of(keys: Sequence[str]) -> dict[str, str]:
    return {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }

"""The main job as the terminal runs it: its runs, what they leave, and what becomes of trouble."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.errors import (
    DatabaseUnavailableError,
    InterruptedRunError,
    PreflightError,
    WeightsError,
)
from ingestion_pipeline.orchestration.failures import V2, unfinished_ranges
from ingestion_pipeline.orchestration.in_process import run_preflight, run_verify
from ingestion_pipeline.orchestration.runs import INVOCATION_TAG, PROCESS_TAG, process_tag
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.ranges import IdType, range_of
from ingestion_pipeline.verification.checks import CHECKS
from ingestion_pipeline.work import RunIdentity
from ingestion_pipeline_tests.orchestration.conftest import KEYS, PRODUCTS, SmallShop
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import Product, add_products, products

REFUSE_PRODUCT_8 = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'product 8 is not welcome'; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON product_embeddings_v2
    FOR EACH ROW WHEN (NEW."productId" = 8) EXECUTE FUNCTION refuse();
"""


def test_a_first_run_fills_v2_and_materializes_each_range_once(small_shop: SmallShop) -> None:
    outcome = small_shop.ingest()

    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS
    assert small_shop.materialized() == KEYS
    assert outcome.failed_ranges == []
    assert not outcome.up_to_date
    assert outcome.report is not None
    assert (outcome.report.products, outcome.report.processed) == (PRODUCTS, PRODUCTS)
    assert outcome.report.embedded == 3 * PRODUCTS
    assert {check.status for check in outcome.checks} <= {"pass", "unknown"}


def test_texts_that_change_faster_than_they_are_embedded_are_named_by_the_run(
    small_shop: SmallShop, tmp_path: Path
) -> None:
    # Beyond the first products, at which preflight looks twice.
    add_products(small_shop.connection, products(30)[PRODUCTS:])
    mapping = tmp_path / "product_texts.sql"
    mapping.write_text(
        "SELECT id AS product_id, aspect, name || aspect || "
        "CASE WHEN id = 30 THEN clock_timestamp()::text ELSE '' END AS text "
        "FROM products CROSS JOIN unnest(ARRAY['description', 'usage', 'feature']) AS aspect"
    )
    catalogue = small_shop.settings.catalogue.model_copy(update={"product_texts": mapping})
    small_shop.settings = small_shop.settings.model_copy(update={"catalogue": catalogue})

    outcome = small_shop.ingest()

    [told] = [line for line in small_shop.heard.lines if "had changed each of" in line]
    assert "3 aspect texts" in told
    assert "take random(), now() and the like out of it" in told
    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == 29
    assert {check.name for check in outcome.checks if check.status == "fail"} == {
        "v2_count",
        "every_product_has_embeddings",
        "up_to_date",
    }


def test_the_metadata_of_a_range_counts_what_was_done_in_it(ingested_shop: SmallShop) -> None:

    records = ingested_shop.instance.fetch_materializations(V2, limit=1).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    counts = {name: value.value for name, value in materialization.metadata.items()}
    assert (counts["products"], counts["embedded"], counts["reused"]) == (3, 9, 0)
    assert (counts["empty"], counts["failed"], counts["truncated"]) == (0, 0, 0)
    assert {"seconds", "tokens", "texts/s"} <= counts.keys()


def test_every_run_of_a_command_carries_its_name_and_is_over_when_it_ends(
    ingested_shop: SmallShop,
) -> None:
    runs = list(ingested_shop.instance.get_runs())

    assert [run.job_name for run in reversed(runs)] == ["preflight", "reingest", "finish"]
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    [invocation] = {run.tags[INVOCATION_TAG] for run in runs}
    names = ingested_shop.connection.execute("SELECT DISTINCT invocation FROM ingestion.spend")
    assert names.fetchall() == [(invocation,)]


def test_a_run_over_ranges_is_checked_by_itself_and_the_whole_table_at_the_end(
    ingested_shop: SmallShop,
) -> None:
    def evaluated(job: str) -> set[str]:
        [run] = ingested_shop.runs(job)
        kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
        records = ingested_shop.instance.get_records_for_run(run.run_id, of_type=kind).records
        events = [record.event_log_entry.dagster_event for record in records]
        return {event.asset_check_evaluation_data.check_name for event in events if event}

    assert evaluated("reingest") == {"ranges_complete"}
    assert evaluated("finish") == {*CHECKS, "every_range_is_materialized"}


def test_a_second_run_embeds_nothing_and_says_so(ingested_shop: SmallShop) -> None:
    outcome = ingested_shop.ingest()

    assert ingested_shop.models.texts == []
    assert outcome.up_to_date
    assert len(ingested_shop.runs("reingest")) == 1
    assert outcome.report is not None
    assert (outcome.report.processed, outcome.report.skipped) == (0, PRODUCTS)
    assert [check.name for check in outcome.checks if check.status == "fail"] == []


def test_only_the_range_of_a_changed_product_is_run_again(ingested_shop: SmallShop) -> None:
    ingested_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id = 6")
    ingested_shop.ingest()

    assert ingested_shop.models.texts == ["Thing 6. is worn"]
    assert ingested_shop.materialized()[len(KEYS) :] == [KEYS[1]]


def test_progress_counts_up_to_the_products_of_all_runs_together(
    ingested_shop: SmallShop,
) -> None:
    # Ranges 2 and 4 are no neighbours, so there is a run for each.
    ingested_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id IN (6, 11)")

    ingested_shop.ingest()

    assert len(ingested_shop.runs("reingest")) == 1 + 2
    moments = ingested_shop.heard.moments
    assert {moment.total for moment in moments} == {2}
    assert [moment.done for moment in moments] == [1, 2]


def test_a_failed_check_stops_everything_before_a_vector_is_written(
    small_shop: SmallShop,
) -> None:
    small_shop.models = KnownModels(problems=("model.safetensors is not the pinned one.",))
    small_shop.connection.execute("TRUNCATE products")

    with pytest.raises(PreflightError) as raised:
        small_shop.ingest()

    # Both say no, so both are heard; the canary, which writes, never ran.
    assert "model.safetensors is not the pinned one." in str(raised.value)
    assert "ingest load" in str(raised.value)
    assert {verdict.check for verdict in small_shop.heard.verdicts} == {
        "database_connection",
        "embedding_quota",
        "product_count",
        "disk_space",
    }
    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == 0
    assert small_shop.materialized() == []
    assert [run.status for run in small_shop.runs("preflight")] == [dg.DagsterRunStatus.FAILURE]


def test_a_limit_takes_so_many_products_through_and_stops(small_shop: SmallShop) -> None:
    outcome = small_shop.ingest(limit=2)

    assert small_shop.value("SELECT count(*) FROM product_embeddings_v2") == 2
    assert outcome.report is None
    assert [verdict.check for verdict in outcome.verdicts][-1] == "canary"
    assert small_shop.runs("reingest") == []


def test_a_server_that_cannot_be_reached_is_an_error_of_its_own_kind(
    small_shop: SmallShop,
) -> None:
    small_shop.settings = small_shop.settings.model_copy(
        update={"database_url": SecretStr("postgresql://me:secret@127.0.0.1:1/shop")}
    )

    with pytest.raises(DatabaseUnavailableError) as raised:
        small_shop.ingest()

    said = "\n".join(line for verdict in small_shop.heard.verdicts for line in verdict.lines())
    assert "127.0.0.1" in said
    assert "secret" not in said + str(raised.value)


def test_a_range_that_the_database_refuses_stays_failed_while_the_others_are_done(
    small_shop: SmallShop,
) -> None:
    run_preflight(small_shop.settings, small_shop.heard, products=1, models=small_shop.models)
    small_shop.connection.execute(REFUSE_PRODUCT_8)

    outcome = small_shop.ingest()

    [(key, reason)] = outcome.failed_ranges
    assert key == KEYS[2]
    assert "product 8 is not welcome" in reason
    assert sorted(small_shop.materialized()) == sorted(set(KEYS) - {KEYS[2]})
    assert unfinished_ranges(small_shop.instance, KEYS) == {KEYS[2]: "failed"}
    statuses = {check.name: check for check in outcome.checks}
    assert statuses["every_range_is_materialized"].sample == (f"{KEYS[2]} (failed)",)
    assert statuses["every_product_has_embeddings"].status == "fail"


def test_a_retry_runs_the_failed_range_alone(small_shop: SmallShop) -> None:
    small_shop.ingest(limit=1)
    small_shop.connection.execute(REFUSE_PRODUCT_8)
    small_shop.ingest()
    small_shop.connection.execute("DROP TRIGGER refuse ON product_embeddings_v2")
    # Stale, but in a range that Dagster holds for done: a retry leaves it to the next run.
    small_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id = 11")
    done_before = len(small_shop.materialized())

    outcome = small_shop.ingest(ranges="failed")

    assert small_shop.materialized()[done_before:] == [KEYS[2]]
    assert outcome.failed_ranges == []
    assert unfinished_ranges(small_shop.instance, KEYS) == {}
    assert small_shop.value('SELECT count(*) FROM product_embeddings_v2 WHERE "productId" = 8') == 1


def test_an_outage_stops_at_once_and_leaves_the_finished_ranges_done(
    small_shop: SmallShop,
) -> None:
    def lose_the_model(texts: Sequence[str]) -> None:
        if any("Thing 8." in text for text in texts):
            raise WeightsError("The model's files are gone. Run `ingest models --fetch`.")

    small_shop.models = KnownModels(before=lose_the_model)

    with pytest.raises(WeightsError, match="ingest models --fetch"):
        small_shop.ingest()

    assert small_shop.materialized() == KEYS[:2]
    assert unfinished_ranges(small_shop.instance, KEYS) == {KEYS[2]: "failed", KEYS[3]: "failed"}
    assert small_shop.value("SELECT count(*) FROM ingestion.leases") == 0
    assert small_shop.value("SELECT count(*) FROM ingestion.failed_products") == 0


def test_a_range_that_another_run_holds_is_left_to_it(ingested_shop: SmallShop) -> None:
    ingested_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id IN (8, 11)")
    with open_shop(ingested_shop.settings) as other:
        range_ = range_of(KEYS[2], IdType.INTEGER)
        other.embeddings.claim(range_, RunIdentity("the-other-run", "another", KEYS[2]), 60)

        outcome = ingested_shop.ingest()

    [(key, reason)] = outcome.held_ranges
    assert key == KEYS[2]
    assert "held by run the-other-run" in reason
    assert outcome.failed_ranges == []
    assert ingested_shop.models.texts == ["Thing 11. is worn"]
    # v2 is finished by the run that holds the rest.
    assert outcome.report is None
    assert len(ingested_shop.runs("finish")) == 1


@pytest.mark.parametrize("limit", [None, 5])
def test_the_canary_does_not_stop_a_run_whose_first_products_another_run_holds(
    ingested_shop: SmallShop, limit: int | None
) -> None:
    ingested_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id IN (2, 11)")
    with open_shop(ingested_shop.settings) as other:
        range_ = range_of(KEYS[0], IdType.INTEGER)
        other.embeddings.claim(range_, RunIdentity("the-other-run", "another", KEYS[0]), 60)

        outcome = ingested_shop.ingest(limit=limit)

    [canary] = [verdict for verdict in outcome.verdicts if verdict.check == "canary"]
    assert canary.status == "unknown"
    assert "held by run the-other-run" in str(canary.reasons[0])
    assert len(outcome.held_ranges) == 1
    assert ingested_shop.models.texts == ([] if limit else ["Thing 11. is worn"])


def test_a_range_that_is_free_again_at_the_end_is_taken_then(ingested_shop: SmallShop) -> None:
    ingested_shop.connection.execute("UPDATE products SET usage = 'is worn' WHERE id IN (8, 11)")
    with open_shop(ingested_shop.settings) as other:
        range_ = range_of(KEYS[2], IdType.INTEGER)
        identity = RunIdentity("the-other-run", "another", KEYS[2])
        lease = other.embeddings.claim(range_, identity, 60)
        ingested_shop.models.before = lambda _: other.embeddings.release(lease)

        outcome = ingested_shop.ingest()

    assert outcome.held_ranges == []
    assert ingested_shop.models.texts == ["Thing 11. is worn", "Thing 8. is worn"]
    assert outcome.report is not None


def test_a_command_interrupted_in_its_preflight_is_over(small_shop: SmallShop) -> None:
    def interrupt(_: Sequence[str]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    small_shop.models = KnownModels(before=interrupt)

    with pytest.raises(InterruptedRunError):
        small_shop.ingest()

    assert [run.status for run in small_shop.runs("preflight")] == [dg.DagsterRunStatus.CANCELED]
    assert small_shop.value("SELECT count(*) FROM ingestion.leases") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_over_and_has_given_its_range_back(
    small_shop: SmallShop, number: signal.Signals
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done:
            os.kill(os.getpid(), number)

    small_shop.heard.on_progress = interrupt

    with pytest.raises(InterruptedRunError, match="carries on"):
        small_shop.ingest()

    [run] = small_shop.runs("reingest")
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert small_shop.value("SELECT count(*) FROM ingestion.leases") == 0
    assert unfinished_ranges(small_shop.instance, KEYS)
    small_shop.heard.on_progress = lambda _: None
    outcome = small_shop.ingest()
    assert unfinished_ranges(small_shop.instance, KEYS) == {}
    assert len(small_shop.models.texts) == len(set(small_shop.models.texts))
    assert outcome.failed_ranges == []


def test_a_run_left_by_a_dead_process_is_failed_by_the_next_command(
    ingested_shop: SmallShop,
) -> None:
    [(tag, name)] = process_tag().items()
    dead = name.replace(f"/{os.getpid()}/", "/999999999/")
    [run] = ingested_shop.runs("finish")
    orphan = ingested_shop.instance.create_run_for_job(
        _job("finish"), status=dg.DagsterRunStatus.STARTED, tags={tag: dead}
    )
    living = ingested_shop.instance.create_run_for_job(
        _job("finish"), status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: name}
    )

    run_verify(ingested_shop.settings, ingested_shop.heard)

    assert _status(ingested_shop, orphan.run_id) == dg.DagsterRunStatus.FAILURE
    assert _status(ingested_shop, living.run_id) == dg.DagsterRunStatus.STARTED
    assert _status(ingested_shop, run.run_id) == dg.DagsterRunStatus.SUCCESS


def _job(name: str) -> dg.JobDefinition:
    from ingestion_pipeline.orchestration.definitions import defs

    return defs.resolve_job_def(name)


def _status(shop: SmallShop, run_id: str) -> dg.DagsterRunStatus:
    run = shop.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_new_dagster_storage_over_a_finished_v2_learns_that_it_is_done(
    ingested_shop: SmallShop,
) -> None:
    ingested_shop.instance.wipe_assets([V2])
    outcome = ingested_shop.ingest()

    assert outcome.up_to_date
    assert ingested_shop.models.texts == []
    assert unfinished_ranges(ingested_shop.instance, KEYS) == {}


def test_a_range_that_has_grown_is_cut_and_dagsters_keys_follow(ingested_shop: SmallShop) -> None:
    new = [Product(id_, f"Thing {id_}", "new", "new", "new") for id_ in range(13, 18)]
    add_products(ingested_shop.connection, new)

    outcome = ingested_shop.ingest()

    keys = ingested_shop.instance.get_dynamic_partitions("product_id_ranges")
    assert KEYS[3] not in keys
    assert set(KEYS[:3]) < set(keys)
    assert unfinished_ranges(ingested_shop.instance, list(keys)) == {}
    assert ingested_shop.value("SELECT count(*) FROM product_embeddings_v2") == PRODUCTS + len(new)
    assert outcome.failed_ranges == []


def test_verify_names_the_products_that_lost_a_vector(ingested_shop: SmallShop) -> None:
    ingested_shop.connection.execute(
        'UPDATE product_embeddings_v2 SET usage_embedding = NULL WHERE "productId" = 7'
    )

    checks = {
        check.name: check for check in run_verify(ingested_shop.settings, ingested_shop.heard)
    }

    assert checks["null_vectors"].status == "fail"
    assert checks["null_vectors"].count == 1
    assert "7 Thing 7" in checks["null_vectors"].sample[0]
    key = dg.AssetCheckKey(dg.AssetKey("product_embeddings_v2_indexes"), "null_vectors")
    record = ingested_shop.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    assert record.status.value == "FAILED"


def test_progress_of_several_runs_adds_up() -> None:
    from ingestion_pipeline.orchestration.listener import Recorder
    from ingestion_pipeline_tests.orchestration.conftest import Heard

    heard = Heard()
    recorder = Recorder(heard)
    recorder.expect(10)
    first = Progress(done=4, total=4, failed=1, seconds=2.0, embedded=9, reused=3)
    recorder.progress(first)
    recorder.run_over()
    recorder.progress(replace(first, done=2, total=6, failed=0, seconds=1.0))

    assert heard.moments[-1] == Progress(6, 10, 1, 3.0, 18, 6)

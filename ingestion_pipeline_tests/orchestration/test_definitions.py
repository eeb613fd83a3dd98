"""What Dagster loads: everywhere, without a database, a model or a key, and as one graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg

from ingestion_pipeline.orchestration import preflight_assets
from ingestion_pipeline.orchestration.definitions import defs
from ingestion_pipeline.orchestration.failures import V2
from ingestion_pipeline.verification.checks import CHECKS

MODULE = "ingestion_pipeline.orchestration.definitions"
FIRST_FOUR = {"database_connection", "embedding_quota", "product_count", "disk_space"}


def _bare_environment(home: Path) -> dict[str, str]:
    """No database, no Dagster home, and a home folder without a single model."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def test_the_definitions_are_valid_in_a_fresh_interpreter_without_anything(tmp_path: Path) -> None:
    dagster = Path(sys.executable).with_name("dagster")
    validated = subprocess.run(
        [dagster, "definitions", "validate", "-m", MODULE],
        cwd=tmp_path,
        env=_bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert validated.returncode == 0, validated.stdout + validated.stderr
    assert "successful" in validated.stdout + validated.stderr


def test_loading_the_definitions_imports_no_model_library(tmp_path: Path) -> None:
    code = f"import {MODULE}, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:ingestion_pipeline", "-c", code],
        cwd=tmp_path,
        env=_bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    modules = set(json.loads(loaded.stdout))
    assert modules.isdisjoint({"torch", "transformers", "sentence_transformers", "pandas"})


def _asset(name: str) -> dg.AssetsDefinition:
    return defs.resolve_assets_def(name)


def _upstream(name: str) -> set[str]:
    graph = defs.resolve_asset_graph()
    return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}


def test_the_graph_leads_from_the_shop_through_preflight_to_the_report() -> None:
    assert _upstream("canary") == FIRST_FOUR
    assert _upstream("product_id_ranges") == {"canary"}
    assert _upstream("product_embeddings_v2") == {"product_id_ranges"}
    assert _upstream("product_embeddings_v2_indexes") == {"product_embeddings_v2"}
    assert _upstream("ingestion_report") == {"product_embeddings_v2_indexes"}


def test_each_preflight_asset_stops_what_comes_after() -> None:
    for name in (*FIRST_FOUR, "canary"):
        [spec] = _asset(name).check_specs
        assert (spec.name, spec.blocking) == (preflight_assets.VERDICT, True)


def test_every_asset_says_what_it_is_whose_it_is_and_what_it_is_made_of() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners == ["team:search"], key
        assert node.kinds, key
        assert node.group_name != "default", key


def test_the_checks_of_the_whole_table_stand_on_v2_as_a_whole_and_not_on_its_ranges() -> None:
    keys = defs.resolve_asset_graph().asset_check_keys
    whole = dg.AssetKey("product_embeddings_v2_indexes")
    on_ranges = {key.name for key in keys if key.asset_key == V2}
    on_whole = {key.name for key in keys if key.asset_key == whole}

    assert on_ranges == {"ranges_complete"}
    assert on_whole == {*CHECKS, "every_range_is_materialized"}


def test_the_schedule_waits_to_be_switched_on() -> None:
    schedule = defs.resolve_schedule_def("nightly")

    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "0 2 * * *"

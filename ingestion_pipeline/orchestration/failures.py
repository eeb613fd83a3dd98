"""Which ranges are not done, as Dagster records it.

A range is *failed* when the last run that was to write it ended without doing so, and *missing*
when no run ever was. Whether its products are stale is the catalogue's to say, not Dagster's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import dagster as dg

from ingestion_pipeline.orchestration.partitions import RANGES

V2 = dg.AssetKey("product_embeddings_v2")

State = Literal["done", "running", "failed", "missing"]

_STATES: dict[str | None, State] = {
    "MATERIALIZED": "done",
    "IN_PROGRESS": "running",
    "FAILED": "failed",
    None: "missing",
}


def range_states(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, State]:
    """The state of each of `keys`, in their order; a queued range counts as running."""
    statuses = instance.get_status_by_partition(V2, keys, RANGES) or {}
    return {key: _STATES[status.value if (status := statuses.get(key)) else None] for key in keys}


def unfinished_ranges(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, State]:
    """The failed and the missing ranges among `keys`: those that a retry works on."""
    states = range_states(instance, keys)
    return {key: state for key, state in states.items() if state in ("failed", "missing")}


def report_up_to_date(instance: dg.DagsterInstance, keys: Collection[str]) -> None:
    """Record ranges as materialized whose products are up to date without a run of this storage.

    So it is after a split, after another machine's run, and for a new storage over a finished v2.
    """
    for key in keys:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=V2,
                partition=key,
                description="Nothing in this range was stale.",
                metadata={"products": 0, "embedded": 0, "reused": 0, "failed": 0},
            )
        )

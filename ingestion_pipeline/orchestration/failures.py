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

State = Literal["failed", "missing"]


def unfinished_ranges(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, State]:
    """The failed and the missing ranges among `keys`, in their order; none that is being written."""
    statuses = instance.get_status_by_partition(V2, keys, RANGES) or {}
    unfinished: dict[str, State] = {}
    for key in keys:
        status = statuses.get(key)
        if status is None:
            unfinished[key] = "missing"
        elif status.value == "FAILED":
            unfinished[key] = "failed"
    return unfinished


def report_up_to_date(instance: dg.DagsterInstance, keys: Collection[str]) -> None:
    """Record ranges as materialized whose products are all up to date without a run of this storage.

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



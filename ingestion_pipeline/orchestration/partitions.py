"""Product-id ranges as Dagster's dynamic partitions.

The truth is the shop's table of ranges; Dagster's keys follow it. Which ranges there should be is
planned in `database.embeddings`, and what a key means is told by `ranges`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import dagster as dg

RANGES = dg.DynamicPartitionsDefinition(name="product_id_ranges")

RANGES_PER_RUN = 10
"""Ranges in one run that Dagster starts: a run loads the models once, and is shown as one bar."""

# Dagster reads a run over several partitions from these two tags.
_RANGE_START_TAG = "dagster/asset_partition_range_start"
_RANGE_END_TAG = "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Block:
    """Keys that follow each other in Dagster's order, so that one run can be given all of them."""

    keys: tuple[str, ...]

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a run over the block."""
        return {_RANGE_START_TAG: self.keys[0], _RANGE_END_TAG: self.keys[-1]}


def is_over_ranges(run: dg.DagsterRun) -> bool:
    """Whether the run works on partitions."""
    return _RANGE_START_TAG in run.tags or "dagster/partition" in run.tags


def sync(instance: dg.DagsterInstance, keys: Sequence[str]) -> list[str]:
    """Make Dagster's keys those of the plan; returns them in Dagster's order.

    Dagster keeps keys in the order in which they were added, which stops being the order of ids
    once a range is split.
    """
    known = instance.get_dynamic_partitions(_name())
    wanted = set(keys)
    for key in known:
        if key not in wanted:
            instance.delete_dynamic_partition(_name(), key)
    added = [key for key in keys if key not in set(known)]
    if added:
        instance.add_dynamic_partitions(_name(), added)
    return keys_in_order(instance)


def keys_in_order(instance: dg.DagsterInstance) -> list[str]:
    """The keys that Dagster has, in its order."""
    return list(instance.get_dynamic_partitions(_name()))


def blocks(
    chosen: Collection[str], order: Sequence[str], *, at_most: int | None = None
) -> list[Block]:
    """Cut the chosen keys into as few runs of neighbours as `order` allows.

    A block holds `at_most` keys; None is no limit. Chosen keys that `order` lacks are left out.
    """
    wanted = set(chosen)
    found: list[list[str]] = [[]]
    for key in order:
        if key not in wanted:
            found.append([])
        elif at_most is not None and len(found[-1]) == at_most:
            found.append([key])
        else:
            found[-1].append(key)
    return [Block(tuple(keys)) for keys in found if keys]


def _name() -> str:
    name = RANGES.name
    if name is None:
        raise AssertionError("the partitions are defined with a name")
    return name

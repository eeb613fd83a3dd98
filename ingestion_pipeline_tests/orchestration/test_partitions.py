"""Cutting chosen ranges into runs (pure), and keeping Dagster's keys to the plan."""

from __future__ import annotations

import dagster as dg
from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.orchestration.partitions import blocks, keys_in_order, sync

ORDERS = st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=12)


@given(order=ORDERS, data=st.data(), at_most=st.one_of(st.none(), st.integers(1, 4)))
def test_blocks_hold_every_chosen_key_once_and_only_neighbours(
    order: list[str], data: st.DataObject, at_most: int | None
) -> None:
    chosen = [key for key in order if data.draw(st.booleans())]

    cut = blocks(chosen, order, at_most=at_most)

    assert [key for block in cut for key in block.keys] == chosen
    for block in cut:
        start = order.index(block.keys[0])
        assert tuple(order[start : start + len(block.keys)]) == block.keys
        assert at_most is None or len(block.keys) <= at_most


def test_a_block_is_as_long_as_the_order_allows() -> None:
    assert [block.keys for block in blocks({"b", "c", "e"}, list("abcdef"))] == [("b", "c"), ("e",)]


def test_a_block_of_one_key_is_a_run_from_it_to_it() -> None:
    [block] = blocks(["b"], ["a", "b"])

    assert set(block.tags.values()) == {"b"}


def test_dagsters_keys_become_those_of_the_plan(dagster_instance: dg.DagsterInstance) -> None:
    sync(dagster_instance, ["a:b", "b:c", "c:*"])

    assert sync(dagster_instance, ["a:b", "b:bb", "bb:c", "c:*"]) == ["a:b", "c:*", "b:bb", "bb:c"]
    assert keys_in_order(dagster_instance) == ["a:b", "c:*", "b:bb", "bb:c"]

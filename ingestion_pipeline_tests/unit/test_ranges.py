"""Ranges tile the id space, and their keys name them exactly."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingestion_pipeline.errors import InputError
from ingestion_pipeline.ranges import (
    EVERYTHING,
    IdType,
    ProductId,
    ProductIdRange,
    key_of,
    range_of,
    split,
)

# What Dagster refuses in a partition key.
FORBIDDEN = ("...", "\a", "\b", "\f", "\n", "\r", "\t", "\v", "\0")

# PostgreSQL holds neither NUL nor lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
IDS: dict[IdType, st.SearchStrategy[ProductId]] = {
    IdType.INTEGER: st.integers(-(2**31), 2**31 - 1),
    IdType.BIGINT: st.integers(-(2**63), 2**63 - 1),
    IdType.UUID: st.uuids(),
    IdType.TEXT: TEXT,
}
AWKWARD = [
    "", " ", "*", ":", "*:*", "a:b", "a/b", "..", "...", "a...b", "%", "%2A", "100%", "~", "a b",
    "line\nbreak", "\t", "Käse", "سكر", "👩‍🍳", "\N{COMBINING ACUTE ACCENT}", "+", "\\", "'", '"',
]  # fmt: skip


def _holds(range_: ProductIdRange, id_: Any) -> bool:
    """As PostgreSQL decides it, by comparing."""
    first: Any = range_.first
    end: Any = range_.end
    return (first is None or id_ >= first) and (end is None or id_ < end)


@pytest.mark.parametrize("id_type", IdType)
@given(data=st.data())
def test_every_id_is_in_exactly_one_range_whatever_the_boundaries(
    id_type: IdType, data: st.DataObject
) -> None:
    ids: st.SearchStrategy[Any] = IDS[id_type]
    boundaries = sorted(data.draw(st.sets(ids, max_size=8)))
    ranges = split(EVERYTHING, boundaries)
    assert len(ranges) == len(boundaries) + 1
    for id_ in [data.draw(ids), *boundaries]:
        assert sum(_holds(range_, id_) for range_ in ranges) == 1


@given(st.sets(st.integers(), max_size=8), st.integers(), st.integers(1, 100), st.integers())
def test_cutting_a_bounded_range_keeps_its_edges_and_loses_and_doubles_no_id(
    inside: set[int], first: int, size: int, id_: int
) -> None:
    whole = ProductIdRange(first, first + size)
    boundaries = sorted(first + 1 + number % size for number in inside)
    boundaries = sorted({edge for edge in boundaries if edge < first + size})
    ranges = split(whole, boundaries)
    assert (ranges[0].first, ranges[-1].end) == (first, first + size)
    assert sum(_holds(range_, id_) for range_ in ranges) == _holds(whole, id_)


def test_without_boundaries_the_range_stays_whole() -> None:
    assert split(EVERYTHING, []) == [EVERYTHING]


@pytest.mark.parametrize("id_type", IdType)
@given(data=st.data())
def test_a_key_leads_back_to_its_range(id_type: IdType, data: st.DataObject) -> None:
    ids = st.none() | IDS[id_type]
    range_ = ProductIdRange(data.draw(ids), data.draw(ids))
    key = key_of(range_, id_type)
    assert range_of(key, id_type) == range_
    assert key_of(range_of(key, id_type), id_type) == key


@pytest.mark.parametrize("first", AWKWARD)
@pytest.mark.parametrize("end", [None, *AWKWARD])
def test_awkward_text_ids_make_keys_that_lead_back(first: str, end: str | None) -> None:
    range_ = ProductIdRange(first, end)
    assert range_of(key_of(range_, IdType.TEXT), IdType.TEXT) == range_


@given(TEXT, TEXT)
@example("...", "a...b")
@example("line\nbreak\ttab", "")
def test_keys_of_text_ids_are_plain_characters_that_dagster_and_urls_take(
    first: str, end: str
) -> None:
    key = key_of(ProductIdRange(first, end), IdType.TEXT)
    assert not any(forbidden in key for forbidden in FORBIDDEN)
    assert key.isascii()
    assert quote(key, safe=":%") == key


@given(st.sets(st.integers(0, 2**63 - 1), min_size=2, max_size=6))
def test_keys_of_integers_sort_as_the_ids_do(boundaries: set[int]) -> None:
    keys = [key_of(range_, IdType.BIGINT) for range_ in split(EVERYTHING, sorted(boundaries))]
    assert sorted(keys) == keys
    assert len({len(key) for key in keys[1:-1]}) <= 1


def test_keys_look_as_documented() -> None:
    assert key_of(EVERYTHING, IdType.TEXT) == "*:*"
    assert key_of(ProductIdRange(None, 1251), IdType.INTEGER) == "*:0000001251"
    assert key_of(ProductIdRange(-5, 7), IdType.INTEGER) == "-0000000005:0000000007"
    assert key_of(ProductIdRange(7, None), IdType.BIGINT) == "0000000000000000007:*"
    assert key_of(ProductIdRange("a b.c", "~"), IdType.TEXT) == "a%20b%2Ec:%7E"
    assert key_of(ProductIdRange(UUID(int=1), None), IdType.UUID) == f"{UUID(int=1)}:*"


@pytest.mark.parametrize(
    ("key", "id_type"),
    [
        ("", IdType.INTEGER),
        ("0000000001", IdType.INTEGER),
        ("0000000001:", IdType.INTEGER),
        ("0000000001:0000000002:0000000003", IdType.INTEGER),
        ("one:two", IdType.INTEGER),
        ("1:2", IdType.INTEGER),  # not of the fixed width
        ("0000000001:1e3", IdType.INTEGER),
        ("0000000001:٠٠٠٠٠٠٠٠٠٢", IdType.INTEGER),
        ("+000000001:*", IdType.INTEGER),
        ("-0000000000:*", IdType.INTEGER),
        (f"{'9' * 5000}:*", IdType.BIGINT),
        ("0000000001:*\n", IdType.INTEGER),
        ("not-a-uuid:*", IdType.UUID),
        (f"{{{UUID(int=1)}}}:*", IdType.UUID),
        ("a b:*", IdType.TEXT),
        ("100%:*", IdType.TEXT),
        ("%FF:*", IdType.TEXT),  # not UTF-8
        ("a.b:*", IdType.TEXT),
        ("a:b:c", IdType.TEXT),
    ],
)
def test_a_key_that_is_not_of_our_making_is_refused_and_named(key: str, id_type: IdType) -> None:
    with pytest.raises(InputError) as refused:
        range_of(key, id_type)
    assert repr(key) in str(refused.value)
    assert "ingest status" in str(refused.value)


@given(st.text(), st.sampled_from(IdType))
def test_any_other_text_is_refused_or_is_exactly_the_key_of_its_range(
    key: str, id_type: IdType
) -> None:
    try:
        range_ = range_of(key, id_type)
    except InputError:
        return
    assert key_of(range_, id_type) == key

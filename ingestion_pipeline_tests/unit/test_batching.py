"""Batches hold every text once and keep to their limits."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.batching import BatchLimits, TextSize, batches

LENGTHS = st.lists(st.integers(0, 600), max_size=60)
BUDGETS = st.integers(1, 5_000)


def padded(tokens: list[int], budget: int) -> list[list[int]]:
    """The batches of a model that pads, within so many tokens."""
    return batches([TextSize(count) for count in tokens], BatchLimits(tokens=budget))


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_exactly_one_batch(tokens: list[int], budget: int) -> None:
    planned = padded(tokens, budget)
    positions = [position for batch in planned for position in batch]
    assert sorted(positions) == list(range(len(tokens)))
    assert all(planned)


@given(LENGTHS, BUDGETS)
def test_a_batch_stays_within_the_budget_unless_one_text_alone_exceeds_it(
    tokens: list[int], budget: int
) -> None:
    for batch in padded(tokens, budget):
        longest = max(tokens[position] for position in batch)
        assert longest * len(batch) <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_no_batch_could_have_taken_the_first_text_of_the_next(
    tokens: list[int], budget: int
) -> None:
    planned = padded(tokens, budget)
    for batch in planned[:-1]:
        assert max(tokens[batch[0]], 1) * (len(batch) + 1) > budget


def test_texts_of_like_length_go_together_longest_first() -> None:
    assert padded([3, 100, 5, 90, 4], 200) == [[1, 3], [2, 4, 0]]


def test_equally_long_texts_keep_their_order() -> None:
    assert padded([7, 7, 7], 21) == [[0, 1, 2]]


def test_a_text_longer_than_the_budget_stands_alone_and_its_neighbours_stay_together() -> None:
    assert padded([2, 500, 2], 100) == [[1], [0, 2]]


def test_texts_without_tokens_do_not_make_an_endless_batch() -> None:
    assert [len(batch) for batch in padded([0] * 10, 4)] == [4, 4, 2]


def test_nothing_makes_no_batch() -> None:
    assert padded([], 100) == []


SIZES = st.lists(st.builds(TextSize, st.integers(0, 600), st.integers(0, 3_000)), max_size=60)
LIMITS = st.builds(
    BatchLimits,
    tokens=st.none() | BUDGETS,
    texts=st.none() | st.integers(1, 20),
    bytes=st.none() | st.integers(1, 10_000),
    padded=st.sampled_from([False]),
)


@given(SIZES, LIMITS)
def test_the_batches_of_an_endpoint_keep_to_each_of_its_limits(
    sizes: list[TextSize], limits: BatchLimits
) -> None:
    planned = batches(sizes, limits)
    assert sorted(position for batch in planned for position in batch) == list(range(len(sizes)))
    for batch in planned:
        taken = [sizes[position] for position in batch]
        assert len(batch) == 1 or (
            sum(text.tokens for text in taken) <= (limits.tokens or math.inf)
            and len(batch) <= (limits.texts or math.inf)
            and sum(text.bytes for text in taken) <= (limits.bytes or math.inf)
        )


def test_tokens_are_counted_as_they_are_where_nothing_is_padded() -> None:
    sizes = [TextSize(100), *[TextSize(1)] * 50]
    assert len(batches(sizes, BatchLimits(tokens=150, padded=False))) == 1
    assert len(batches(sizes, BatchLimits(tokens=150, padded=True))) == 2


@given(SIZES.filter(bool), LIMITS | st.builds(BatchLimits, tokens=BUDGETS))
def test_halved_limits_let_no_batch_of_the_same_size_through(
    sizes: list[TextSize], limits: BatchLimits
) -> None:
    for batch in batches(sizes, limits):
        taken = [sizes[position] for position in batch]
        if len(taken) > 1 and sum(text.tokens for text in taken) > 1:
            assert len(batches(taken, limits.halved(taken))) > 1

"""Batches hold every text once and keep to the budget of padded tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestion_pipeline.batching import token_budget_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=60)
BUDGETS = st.integers(1, 5_000)


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_exactly_one_batch(tokens: list[int], budget: int) -> None:
    batches = token_budget_batches(tokens, budget)
    positions = [position for batch in batches for position in batch]
    assert sorted(positions) == list(range(len(tokens)))
    assert all(batches)


@given(LENGTHS, BUDGETS)
def test_a_batch_stays_within_the_budget_unless_one_text_alone_exceeds_it(
    tokens: list[int], budget: int
) -> None:
    for batch in token_budget_batches(tokens, budget):
        padded = max(tokens[position] for position in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_no_batch_could_have_taken_the_first_text_of_the_next(
    tokens: list[int], budget: int
) -> None:
    batches = token_budget_batches(tokens, budget)
    for batch in batches[:-1]:
        assert max(tokens[batch[0]], 1) * (len(batch) + 1) > budget


def test_texts_of_like_length_go_together_longest_first() -> None:
    assert token_budget_batches([3, 100, 5, 90, 4], 200) == [[1, 3], [2, 4, 0]]


def test_equally_long_texts_keep_their_order() -> None:
    assert token_budget_batches([7, 7, 7], 21) == [[0, 1, 2]]


def test_a_text_longer_than_the_budget_stands_alone_and_its_neighbours_stay_together() -> None:
    assert token_budget_batches([2, 500, 2], 100) == [[1], [0, 2]]


def test_texts_without_tokens_do_not_make_an_endless_batch() -> None:
    assert [len(batch) for batch in token_budget_batches([0] * 10, 4)] == [4, 4, 2]


def test_nothing_makes_no_batch() -> None:
    assert token_budget_batches([], 100) == []

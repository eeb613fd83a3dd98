"""Which texts go to the model together: batches bounded by padded tokens (pure).

A model pads a batch to its longest text, so a batch costs (longest x texts) tokens. Texts of
like length together waste the least: measured on a real catalogue, large fixed batches are slower
than small even ones.
"""

from __future__ import annotations

from collections.abc import Sequence


def halved(budget: int, batch: Sequence[int]) -> int:
    """The budget once a batch of texts of these token lengths has turned out too large."""
    return max(1, min(budget, max(batch) * len(batch)) // 2)


def token_budget_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts so that each group's padded size, longest x count, is at most `budget` tokens.

    `tokens` holds each text's length in tokens. Returns lists of positions in `tokens`; every
    position stands in exactly one list, longest texts first. A text longer than the whole budget
    stands alone.
    """
    order = sorted(range(len(tokens)), key=lambda position: (-tokens[position], position))
    batches: list[list[int]] = []
    for position in order:
        longest = max(tokens[batches[-1][0]], 1) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches

"""Which texts go to the model together: batches bounded by tokens, texts and bytes (pure).

A local model pads a batch to its longest text, so a batch costs (longest x texts) tokens. Texts of
like length together waste the least: measured on a real catalogue, large fixed batches are slower
than small even ones. An endpoint counts the tokens as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TextSize:
    """What one text takes: tokens as its model counts them, and bytes in UTF-8."""

    tokens: int
    bytes: int = 0


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may take; None: as much as one likes.

    `padded` says that each text counts as the longest of its batch. A text that is larger than the
    limits all by itself still makes a batch.
    """

    tokens: int | None = None
    texts: int | None = None
    bytes: int | None = None
    padded: bool = True

    def halved(self, batch: Sequence[TextSize]) -> BatchLimits:
        """The limits once such a batch has turned out too large."""
        taken = _tokens(batch, padded=self.padded)
        return replace(self, tokens=max(1, min(self.tokens or taken, taken) // 2))


def batches(sizes: Sequence[TextSize], limits: BatchLimits) -> list[list[int]]:
    """Group texts so that each group keeps to the limits; longest texts first.

    Returns lists of positions in `sizes`; every position stands in exactly one list. Only the last
    group may have room for more.
    """
    order = sorted(range(len(sizes)), key=lambda position: (-sizes[position].tokens, position))
    groups: list[list[int]] = []
    held = _Held(limits)
    for position in order:
        if groups and held.takes(sizes[position]):
            groups[-1].append(position)
        else:
            held = _Held(limits)
            held.takes(sizes[position])
            groups.append([position])
    return groups


@dataclass
class _Held:
    """The batch at hand, added up: texts come longest first."""

    limits: BatchLimits
    longest: int = 0
    tokens: int = 0
    texts: int = 0
    bytes: int = 0

    def takes(self, text: TextSize) -> bool:
        """Whether one more fits; then it is in. The first always does."""
        longest = max(self.longest, text.tokens, 1)
        texts, tokens = self.texts + 1, self.tokens + text.tokens
        counted = longest * texts if self.limits.padded else tokens
        fits = (
            (self.limits.tokens is None or counted <= self.limits.tokens)
            and (self.limits.texts is None or texts <= self.limits.texts)
            and (self.limits.bytes is None or self.bytes + text.bytes <= self.limits.bytes)
        )
        if fits or self.texts == 0:
            self.longest, self.texts, self.tokens = longest, texts, tokens
            self.bytes += text.bytes
        return fits


def _tokens(batch: Sequence[TextSize], *, padded: bool) -> int:
    if padded:
        return max((text.tokens for text in batch), default=0) * len(batch)
    return sum(text.tokens for text in batch)

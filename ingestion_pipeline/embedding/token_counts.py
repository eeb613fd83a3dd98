"""How many tokens a text has for a model that runs elsewhere, and cutting it to so many.

Exact where the model's `tokenizer.json` is at hand; else an estimate that is on the safe side, and
corrected by what the endpoint reports.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ingestion_pipeline.errors import SettingsError

_BYTES_PER_TOKEN = 3.0
"""English has some 4.5 with OpenAI's tokenizers, other languages in UTF-8 about 3."""

_FEWEST_TOKENS_PER_BYTE, _MOST_TOKENS_PER_BYTE = 1 / 20, 1.0
"""Whatever an endpoint reports."""

_SPECIAL_TOKENS = 2
_SMOOTHING = 0.2


class TokenCounts(Protocol):
    """Counts and cuts."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        ...

    def cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Of each text the beginning that is no longer than so many tokens; the same every time."""
        ...

    def learn(self, counted: int, reported: int) -> None:
        """What the endpoint reported for texts that were counted here."""
        ...


def token_counts(tokenizer: Path | None) -> TokenCounts:
    """By a `tokenizer.json`, or a folder with one; None: by estimate. Raises `SettingsError`."""
    if tokenizer is None:
        return Estimate()
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise SettingsError(
            f"There is no tokenizer {file}. Name a tokenizer.json, or leave `tokenizer` out."
        )
    return TokenizerFile(file)


class TokenizerFile:
    """The model's own tokenizer."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise SettingsError(f"{file} is no tokenizer that can be read: {error}.") from error
        # Both may be baked into the file.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Exactly."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        """At the end of the last token that fits."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return [
            text if len(encoding.ids) <= tokens else self._cut(text, tokens, encoding.offsets)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _cut(self, text: str, tokens: int, offsets: Sequence[tuple[int, int]]) -> str:
        while len(offsets) > tokens and text:
            # Special tokens stand for no part of the text.
            ends = [end for begin, end in offsets if begin != end]
            fitting = ends[: tokens - len(offsets)]
            # A character may be several tokens, and be cut in the middle of them: leave it out.
            text = text[: next((end for end in reversed(fitting) if end < len(text)), 0)]
            offsets = self._tokenizer.encode(text).offsets
        return text

    def learn(self, counted: int, reported: int) -> None:
        """Nothing: what is counted is right."""


class Estimate:
    """From the bytes of a text, by the ratio that has been seen so far."""

    def __init__(self) -> None:
        self._tokens_per_byte = 1 / _BYTES_PER_TOKEN
        self._lock = threading.Lock()

    def count(self, texts: Sequence[str]) -> list[int]:
        """About; rather too many than too few."""
        return [
            _SPECIAL_TOKENS + int(len(text.encode()) * self._tokens_per_byte) + 1 for text in texts
        ]

    def cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        """By bytes, at a character's end; never by the learnt ratio, which changes."""
        most = int(tokens * _BYTES_PER_TOKEN)
        return [text.encode()[:most].decode(errors="ignore") for text in texts]

    def learn(self, counted: int, reported: int) -> None:
        """Come nearer to the true ratio."""
        if counted > 0 and reported > 0:
            with self._lock:
                seen = self._tokens_per_byte * reported / counted
                ratio = self._tokens_per_byte + _SMOOTHING * (seen - self._tokens_per_byte)
                self._tokens_per_byte = min(
                    max(ratio, _FEWEST_TOKENS_PER_BYTE), _MOST_TOKENS_PER_BYTE
                )

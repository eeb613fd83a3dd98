"""Vectors and token counts that follow from the text alone, so that any two servers agree.

Made to cost next to nothing: what is measured against this server is its client. How vectors of a
real model are made is the engine's matter; here they are only written down.
"""

from __future__ import annotations

import base64
import json
import math
import re
from functools import lru_cache
from hashlib import shake_256
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Encoding = Literal["float", "base64"]

_SPECIAL_TOKENS = 2
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
_DIRECTIONS = 256


def tokens_of(text: str) -> int:
    """What the server counts and bills for a text: its words and signs, and two special tokens."""
    return len(_WORD_OR_SIGN.findall(text)) + _SPECIAL_TOKENS


def vector_of(text: str, dimensions: int) -> Vector:
    """The vector of a text: float32, of length 1 but for rounding.

    Another text points elsewhere. At even sizes, the shorter vector of a text is the beginning of
    its longer one, scaled to length 1: what `dimensions` gives with OpenAI's models.
    """
    bits = _bits_of(text, dimensions)
    table = _table(dimensions)
    pairs = table.pairs[np.frombuffer(bits, dtype=np.uint8)]
    if dimensions % 2:
        pairs[-1, 0] = table.last[bits[-1]]
    return pairs.ravel()[:dimensions]


def encoded_vector_of(text: str, dimensions: int, encoding: Encoding) -> bytes:
    """`encoded(vector_of(text, dimensions), encoding)`, much faster."""
    if encoding == "base64":
        return encoded(vector_of(text, dimensions), encoding)
    bits = _bits_of(text, dimensions)
    table = _table(dimensions)
    if dimensions % 2:
        numbers = [*map(table.json.__getitem__, bits[:-1]), b"%.6f" % table.last[bits[-1]]]
    else:
        numbers = [*map(table.json.__getitem__, bits)]
    return b"[" + b",".join(numbers) + b"]"


def encoded(vector: Vector, encoding: Encoding) -> bytes:
    """A vector as it stands in the answer: a JSON list, or the base64 of its float32 in quotes."""
    if encoding == "base64":
        return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'
    # The shortest number that reads back as the same float32; NaN becomes the `NaN` of JavaScript.
    return json.dumps([float(str(number)) for number in vector]).encode()


def _bits_of(text: str, dimensions: int) -> bytes:
    """A byte for each pair of numbers; more numbers only add bytes at the end."""
    return shake_256(text.encode("utf-8", "surrogatepass")).digest((dimensions + 1) // 2)


class _Table:
    """For each byte two numbers on a circle, so that all pairs together have length 1."""

    def __init__(self, dimensions: int) -> None:
        radius = math.sqrt(2 / dimensions)
        # Half a step aside, so that no number is zero.
        angles = [(step + 0.5) * math.tau / _DIRECTIONS for step in range(_DIRECTIONS)]
        texts = [(f"{radius * math.cos(a):.6f}", f"{radius * math.sin(a):.6f}") for a in angles]
        self.json = [f"{x},{y}".encode() for x, y in texts]
        self.pairs = np.array(texts, dtype=np.float64).astype(np.float32)
        # Where the number is odd, the last one has no partner.
        alone = float(f"{1 / math.sqrt(dimensions):.6f}")
        self.last = [alone if step % 2 else -alone for step in range(_DIRECTIONS)]


@lru_cache(maxsize=64)
def _table(dimensions: int) -> _Table:
    return _Table(dimensions)

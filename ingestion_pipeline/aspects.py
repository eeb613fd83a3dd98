"""The three views on a product that get a vector each, and what makes two vectors comparable.

An aspect is a name and a column of `product_embeddings_v2`. Which model embeds it is a setting;
what text stands for it is `sql/product_texts.sql`.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import NotRequired, TypedDict, Unpack


class Aspect(StrEnum):
    """One view on a product, in the order of v2's columns."""

    DESCRIPTION = "description"
    USAGE = "usage"
    FEATURE = "feature"

    @property
    def column(self) -> str:
        """The column of `product_embeddings_v2` that holds this aspect's vector."""
        return f"{self.value}_embedding"


class FingerprintParts(TypedDict):
    """Everything that must be equal for two vectors to be comparable.

    The aspect is left out on purpose: two aspects that share a model share vectors.
    """

    provider: str
    model: str
    revision: str | None
    dimensions: int
    prefix: str
    normalize: bool
    max_tokens: int
    text_rules: int
    files: NotRequired[str | None]
    """What a folder of model files holds, where no revision says it."""
    endpoint: NotRequired[str]
    """Where an API is, where no revision says which model answers there."""


def fingerprint(**parts: Unpack[FingerprintParts]) -> str:
    """Digest of the parts, which a database can compare at a glance.

    Returns 16 hexadecimal characters (64 bits of SHA-256: a shop has a handful of fingerprints in
    its life).
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]

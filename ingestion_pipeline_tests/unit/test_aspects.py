"""Aspects are v2's columns, and a fingerprint changes with everything that changes a vector."""

from __future__ import annotations

from typing import Any

import pytest

from ingestion_pipeline.aspects import Aspect, fingerprint

PARTS: dict[str, Any] = {
    "provider": "sentence-transformers",
    "model": "a/model",
    "revision": "abc",
    "dimensions": 768,
    "prefix": "",
    "normalize": True,
    "max_tokens": 384,
    "text_rules": 1,
}


def test_aspects_are_the_columns_of_v2_in_their_order() -> None:
    assert [aspect.column for aspect in Aspect] == [
        "description_embedding",
        "usage_embedding",
        "feature_embedding",
    ]


def test_a_fingerprint_is_the_same_in_every_version_and_on_every_machine() -> None:
    # Changing this value makes every vector of every shop stale.
    assert fingerprint(**PARTS) == "2616afdbbdc3e9f4"


def test_a_fingerprint_is_16_hexadecimal_characters() -> None:
    assert len(fingerprint(**PARTS)) == 16
    assert int(fingerprint(**PARTS), 16) > 0


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("provider", "openai"),
        ("model", "another/model"),
        ("revision", "abd"),
        ("revision", None),
        ("dimensions", 384),
        ("prefix", "passage: "),
        ("normalize", False),
        ("max_tokens", 256),
        ("text_rules", 2),
    ],
)
def test_every_part_changes_the_fingerprint(part: str, value: object) -> None:
    assert fingerprint(**{**PARTS, part: value}) != fingerprint(**PARTS)


def test_no_revision_is_not_a_revision_called_none() -> None:
    without = fingerprint(**{**PARTS, "revision": None})
    assert without != fingerprint(**{**PARTS, "revision": "None"})
    assert without != fingerprint(**{**PARTS, "revision": ""})

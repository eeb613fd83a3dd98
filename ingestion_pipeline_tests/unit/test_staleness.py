"""Why aspects are stale: named by the setting that changed, counted, and never made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import AspectCount, ChangedAspects
from ingestion_pipeline.database.inspection import CountFacts
from ingestion_pipeline.preflight import product_count
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.staleness import causes, difference, in_words

SETTINGS = Settings(home=Path("unused"), model_cache=Path("unused"))
USAGE: dict[str, Any] = {**SETTINGS.fingerprint_parts(Aspect.USAGE)}
NOTHING = CountFacts(
    products=3_000,
    stale_products=0,
    failed_products=0,
    aspects=(AspectCount(Aspect.USAGE, "done", 200, 200),),
    texts_to_embed={},
    empty_texts=dict.fromkeys(Aspect, 0),
    ranges=1,
)


def with_prefix(prefix: str) -> Settings:
    """The settings with another prefix for usage."""
    usage = SETTINGS.aspects[Aspect.USAGE].model_copy(update={"prefix": prefix})
    return SETTINGS.model_copy(update={"aspects": {**SETTINGS.aspects, Aspect.USAGE: usage}})


def facts(*states: AspectCount, changed: tuple[ChangedAspects, ...] = ()) -> CountFacts:
    return replace(NOTHING, aspects=(*NOTHING.aspects, *states), changed=changed)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("prefix", "passage: ", "its model's prefix changed from '' to 'passage: '"),
        ("model", "a/b", "its model changed from 'sentence-transformers/all-mpnet-base-v2' to"),
        ("revision", None, f"its model's revision changed from '{USAGE['revision']}' to none"),
        ("dimensions", 384, "its model's dimensions changed from 768 to 384"),
        ("normalize", False, "its model's normalize changed from true to false"),
        ("max_tokens", 256, "its model's max_tokens changed from 384 to 256"),
        ("provider", "openai", "its model's provider changed from 'sentence-transformers' to"),
        ("text_rules", 9, "the version of the rules that clean texts changed from 1 to 9"),
    ],
)
def test_a_changed_part_of_a_fingerprint_is_named_with_both_values(
    part: str, value: object, words: str
) -> None:
    assert difference(USAGE, {**USAGE, part: value}).startswith(words)


def test_every_part_that_changed_is_named_but_not_the_revision_of_another_model() -> None:
    told = difference(USAGE, {**USAGE, "model": "a/b", "revision": "abc", "prefix": "q: "})
    assert told == (
        "its model changed from 'sentence-transformers/all-mpnet-base-v2' to 'a/b', "
        "its model's prefix changed from '' to 'q: '"
    )


def test_a_part_that_the_record_does_not_know_was_none() -> None:
    before = {name: value for name, value in USAGE.items() if name != "prefix"}
    assert difference(before, USAGE) == "its model's prefix changed from none to ''"


def test_a_fingerprint_that_is_not_on_record_is_not_guessed_at() -> None:
    assert difference(None, USAGE) == "its model changed, from one that is not on record"


def test_a_long_prefix_is_cut() -> None:
    told = difference(USAGE, {**USAGE, "prefix": "x" * 5_000})
    assert len(told) < 150
    assert told.endswith("…'")


def test_preflight_says_how_many_aspects_are_stale_and_why() -> None:
    counted = facts(
        AspectCount(Aspect.USAGE, "model changed", 2_766, 2_700),
        AspectCount(Aspect.DESCRIPTION, "text changed", 12, 12),
        AspectCount(Aspect.FEATURE, "new", 5, 5),
        changed=(
            ChangedAspects(Aspect.USAGE, "model changed", USAGE, remapped=False, aspects=2_766),
            ChangedAspects(Aspect.DESCRIPTION, "text changed", None, remapped=False, aspects=12),
        ),
    )

    verdict = product_count(counted, with_prefix("passage: "))

    prefix = "its model's prefix changed from '' to 'passage: '"
    assert verdict.details == (
        "description: 12 stale: text changed",
        f"usage: 2,766 stale: {prefix}",
        "feature: 5 new",
    )
    assert verdict.facts["stale_because"] == {
        "description": {"text changed": 12},
        "usage": {prefix: 2_766},
        "feature": {"new": 5},
    }
    assert verdict.lines()[1:] == list(verdict.details)


def test_several_reasons_of_an_aspect_are_counted_apart_the_most_frequent_first() -> None:
    counted = facts(
        AspectCount(Aspect.USAGE, "new", 3, 3),
        AspectCount(Aspect.USAGE, "vector missing", 1, 1),
        AspectCount(Aspect.USAGE, "retry", 2, 2),
        changed=(
            ChangedAspects(Aspect.USAGE, "text changed", USAGE, remapped=False, aspects=4),
            ChangedAspects(Aspect.USAGE, "text changed", None, remapped=True, aspects=5),
        ),
    )

    [line, mapping] = in_words(counted, SETTINGS)

    assert line == (
        "usage: 15 stale: text changed (9); new (3); to be tried again (2); its vector is gone (1)"
    )
    assert mapping == ("mapping: sql/product_texts.sql has changed since 5 of these were ingested")


def test_the_shops_own_mapping_is_named_by_its_file() -> None:
    catalogue = SETTINGS.catalogue.model_copy(update={"product_texts": Path("shop/texts.sql")})
    settings = SETTINGS.model_copy(update={"catalogue": catalogue})
    changed = ChangedAspects(Aspect.USAGE, "text changed", USAGE, remapped=True, aspects=1)

    assert in_words(facts(changed=(changed,)), settings)[-1].startswith("mapping: shop/texts.sql ")


def test_before_a_first_run_there_is_nothing_to_explain() -> None:
    new = tuple(AspectCount(aspect, "new", 3_000, 2_900) for aspect in Aspect)
    first = replace(NOTHING, aspects=new)

    assert in_words(first, SETTINGS) == []
    assert causes(first, SETTINGS)["usage"] == {"new": 3_000}


def test_where_nothing_is_stale_nothing_is_said() -> None:
    assert in_words(NOTHING, SETTINGS) == []
    assert product_count(NOTHING, SETTINGS).details == ()

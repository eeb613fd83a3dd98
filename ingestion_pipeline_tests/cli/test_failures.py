"""`ingest failures`: by cause, with numbers and a sample; and another try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import failures
from ingestion_pipeline.database.embeddings import FailedProduct
from ingestion_pipeline.errors import PermanentTextError
from ingestion_pipeline_tests.cli.conftest import Ingest, execute
from ingestion_pipeline_tests.orchestration.known_models import KnownModels
from ingestion_pipeline_tests.shops import DIMENSIONS, MODELS

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FAILED = "SELECT product_id, aspect, attempts, first_failed_at FROM ingestion.failed_products"
USAGE_OF_3 = 'SELECT usage_embedding IS NULL FROM product_embeddings_v2 WHERE "productId" = 3'


def failed(
    product_id: int,
    aspect: Aspect,
    reason: str,
    *,
    attempts: int = 1,
    hours: int = 0,
) -> FailedProduct:
    """An aspect that failed at noon for the first time, and `hours` later for the last."""
    last = NOON + timedelta(hours=hours)
    return FailedProduct(product_id, f"Thing {product_id}", aspect, reason, attempts, NOON, last)


# What is shown


@pytest.mark.usefixtures("environment")
def test_causes_are_told_with_their_numbers_and_a_sample_the_most_frequent_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = [
        failed(number, aspect, "refused", attempts=number, hours=number)
        for number in (1, 2, 3)
        for aspect in (Aspect.DESCRIPTION, Aspect.USAGE)
    ]
    failures.show(failures.by_cause([failed(9, Aspect.FEATURE, "a zero vector"), *refused]))

    assert capsys.readouterr().out.splitlines() == [
        "7 aspects of 4 products could not be embedded",
        "",
        "  refused",
        "  6 aspects of 3 products, tried 1 to 3 times, 2026-03-01 12:00 to 2026-03-01 15:00 UTC",
        "  product  name     aspect",
        "        1  Thing 1  description",
        "        1  Thing 1  usage",
        "        2  Thing 2  description",
        "        2  Thing 2  usage",
        "        3  Thing 3  description",
        "  and 1 more; --json gives all",
        "",
        "  a zero vector",
        "  1 aspect of 1 product, tried once, 2026-03-01 12:00 UTC",
        "  product  name     aspect",
        "        9  Thing 9  feature",
        "",
        "→ Mend what the causes name, then `ingest failures --retry`.",
    ]


@pytest.mark.usefixtures("environment")
def test_of_very_many_causes_the_first_are_shown_and_all_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures.show(failures.by_cause(failed(n, Aspect.USAGE, f"cause {n:02d}") for n in range(13)))
    shown = capsys.readouterr().out
    assert "13 aspects of 13 products" in shown
    assert "cause 09" in shown
    assert "cause 10" not in shown
    assert "3 more causes; --json gives all" in shown


# Another try


@dataclass
class Mood:
    """Whether the models refuse the usage of the tent."""

    refusing: bool = True

    def before(self, texts: Sequence[str]) -> None:
        if self.refusing and any("Use the tent" in text for text in texts):
            raise PermanentTextError("the model says no")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Mood:
    """Models that are known, and refuse the usage of product 3 until told otherwise."""
    from ingestion_pipeline.orchestration import in_process

    mood = Mood()
    monkeypatch.setattr(in_process, "ConfiguredModels", lambda: KnownModels(before=mood.before))
    return mood


@pytest.fixture
def small_vectors(environment: Path) -> None:
    """Settings with vectors as small as the known models make them."""
    (environment / "ingestion.toml").write_text(
        "".join(
            f'[aspects.{aspect}]\nmodel = "{MODELS[aspect]}"\n'
            f"dimensions = {DIMENSIONS[aspect]}\nmax_tokens = 64\n"
            for aspect in Aspect
        ),
        encoding="utf-8",
    )


@pytest.mark.usefixtures("dagster", "small_vectors")
def test_what_fails_again_counts_one_attempt_more_and_what_succeeds_leaves_the_list(
    ingest: Ingest, shop_url: str, catalogue: Path, models: Mood
) -> None:
    ingest("load", catalogue)
    assert ingest().code == 6
    [(product_id, aspect, attempts, first)] = execute(shop_url, FAILED)
    assert (product_id, aspect, attempts) == (3, "usage", 1)
    listed = ingest("failures")
    assert listed.code == 0
    assert "1 aspect of 1 product could not be embedded" in listed.out
    assert "the model says no\n  1 aspect of 1 product, tried once" in listed.out
    assert "3  A tent  usage" in listed.out

    # A run leaves it alone, and a retry that fails again is one attempt more.
    assert ingest().code == 6
    assert execute(shop_url, FAILED) == [(3, "usage", 1, first)]
    assert ingest("failures", "--retry").code == 6
    assert execute(shop_url, FAILED) == [(3, "usage", 2, first)]
    assert execute(shop_url, USAGE_OF_3) == [(True,)]
    document = ingest("failures", "--json").document
    [cause] = document["causes"]
    assert cause.pop("first_failed_at") < cause.pop("last_failed_at")
    assert cause == {
        "reason": "the model says no",
        "aspects": 1,
        "products": 1,
        "fewest_attempts": 2,
        "most_attempts": 2,
    }
    assert [failure["attempts"] for failure in document["failed"]] == [2]

    models.refusing = False
    assert ingest("failures", "--retry").code == 0
    assert execute(shop_url, FAILED) == []
    assert execute(shop_url, USAGE_OF_3) == [(False,)]
    assert ingest("failures").out == "No product has failed.\n"
    assert ingest("failures", "--json").document == {"causes": [], "failed": []}

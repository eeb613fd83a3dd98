"""`ingest --dry-run`: the texts, batches, tokens and cost of a run, and nothing sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import prepare, reach
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.dry_run import ModelPlan, Plan, PlannedText, planned_texts
from ingestion_pipeline.progress import dollars
from ingestion_pipeline.ranges import EVERYTHING

if TYPE_CHECKING:
    from ingestion_pipeline.settings import Settings

TEXTS_SHOWN = 15


def dry_run(*, limit: int | None, as_json: bool) -> int:
    """Read the catalogue, count, and show. Only the bookkeeping's empty tables are made."""
    from ingestion_pipeline.orchestration.models import ConfiguredModels

    settings = prepare(report=terminal.note).settings
    reach(settings)
    models = ConfiguredModels(sends=False).of(settings, terminal.note)
    plan = Plan(models, settings.work.tokens_per_batch)
    texts: list[PlannedText] = []
    with open_shop(settings) as shop:
        shop.prepare()
        range_ = shop.catalogue.first_products(limit) if limit else EVERYTHING
        for text in planned_texts(
            range_,
            catalogue=shop.catalogue,
            store=shop.embeddings,
            models=models,
            products_per_page=settings.work.products_per_page,
        ):
            plan.add(text)
            if as_json or len(texts) < TEXTS_SHOWN:
                texts.append(text)
    for model in models.values():
        model.close()
    plans = plan.by_fingerprint()
    if as_json:
        terminal.print_json(as_dict(plans, texts, settings))
    else:
        show(plans, texts, settings)
    return ExitCode.OK


def as_dict(
    plans: dict[str, ModelPlan], texts: list[PlannedText], settings: Settings
) -> dict[str, Any]:
    """The plan for JSON, with every text."""
    return {
        "models": [
            {
                "fingerprint": fingerprint,
                "model": _model(fingerprint, settings),
                "aspects": [aspect.value for aspect in _aspects(fingerprint, settings)],
                "texts": plan.texts,
                "batches": plan.batches,
                "tokens": plan.tokens,
                "dollars": None if plan.cost is None else str(plan.cost),
            }
            for fingerprint, plan in plans.items()
        ],
        "texts": [
            {
                "product_id": text.product_id,
                "aspect": text.aspect.value,
                "fingerprint": text.fingerprint,
                "tokens": text.tokens,
                "text": text.text,
            }
            for text in texts
        ],
    }


def show(plans: dict[str, ModelPlan], texts: list[PlannedText], settings: Settings) -> None:
    """The first texts, and what each model would be asked."""
    in_all = sum(plan.texts for plan in plans.values())
    if not in_all:
        terminal.say("Nothing would be sent: no text is without its vector.")
        return
    rows = [(text.product_id, text.aspect.value, f"{text.tokens:,}", text.text) for text in texts]
    terminal.table(("id", "aspect", "tokens", "text"), rows, right={2})
    if in_all > len(texts):
        terminal.say(f"  and {in_all - len(texts):,} more texts; --json lists every one")
    terminal.say()
    terminal.table(
        ("model", "aspects", "texts", "batches", "tokens", "cost"),
        [
            (
                _model(fingerprint, settings),
                ", ".join(aspect.value for aspect in _aspects(fingerprint, settings)),
                f"{plan.texts:,}",
                f"{plan.batches:,}",
                f"{plan.tokens:,}",
                "-" if plan.cost is None else dollars(plan.cost),
            )
            for fingerprint, plan in plans.items()
        ],
        right={2, 3, 4, 5},
    )
    terminal.say()
    terminal.next_step("Nothing was sent. `ingest --limit 5` sends the first five products.")


def _aspects(fingerprint: str, settings: Settings) -> list[Aspect]:
    return [aspect for aspect in Aspect if settings.fingerprint(aspect) == fingerprint]


def _model(fingerprint: str, settings: Settings) -> str:
    return settings.aspects[_aspects(fingerprint, settings)[0]].model

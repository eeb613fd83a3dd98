"""What the assets are given: the shop, the models, and somebody to talk to.

Everything is lazy. Settings are read, the database is opened and a model is loaded when a run asks
for them, so that the definitions load on a machine that has none of the three.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import dagster as dg

from ingestion_pipeline.database.inspection import CountFacts, count_facts
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.models import ConfiguredModels, Models
from ingestion_pipeline.orchestration.runs import process_tag
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.work import Spend


class ShopAccess:
    """Opens the shop that the settings name, as often as a run asks; one object a run."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: those that `ingestion.toml` and the environment hold when asked."""
        self._given = settings
        self._counts: CountFacts | None = None
        self.unrecorded: list[Spend] = []
        """What was spent before there was a table to record it in."""

    @cached_property
    def settings(self) -> Settings:
        """The settings of this run; `SettingsError` if they are wrong."""
        return self._given or load_settings()

    def open(self) -> AbstractContextManager[Shop]:
        """A connection to the shop, for the length of a `with` block."""
        return open_shop(self.settings)

    def counts(self, shop: Shop) -> CountFacts:
        """What there is to do, counted once a run: it reads the whole catalogue."""
        if self._counts is None:
            planned = len(shop.embeddings.ranges())
            self._counts = count_facts(
                shop.connection.live, shop.catalogue, shop.settings, ranges=planned
            )
        return self._counts


def _shop(context: dg.InitResourceContext) -> ShopAccess:
    if context.run is not None and context.instance is not None:
        # Lets `end_orphans` see whether the run's process still lives.
        context.instance.add_run_tags(context.run.run_id, dict(process_tag()))
    return ShopAccess()


def resources(models: Models | None = None) -> dict[str, Any]:
    """The resources of a run that Dagster starts; `models` None: as configured."""
    return {
        "shop": dg.ResourceDefinition(
            _shop, description="The shop's database, as ingestion.toml and DATABASE_URL name it."
        ),
        "models": dg.ResourceDefinition(
            lambda _: models or ConfiguredModels(),
            description="The models that the settings name; local ones are loaded once a process.",
        ),
        "recorder": dg.ResourceDefinition(
            lambda _: Recorder(), description="Who listens to the run beside Dagster's log."
        ),
    }

"""What the assets are given: the shop, the models, and somebody to talk to.

Everything is lazy. Settings are read, the database is opened and a model is loaded when a run asks
for them, so that the definitions load on a machine that has none of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar, Protocol

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import CountFacts, count_facts
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.runs import process_tag
from ingestion_pipeline.reingestion import AspectModel
from ingestion_pipeline.settings import Settings, load_settings


class ShopAccess:
    """Opens the shop that the settings name, as often as a run asks; one object a run."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: those that `ingestion.toml` and the environment hold when asked."""
        self._given = settings
        self._counts: CountFacts | None = None

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
                shop.connection, shop.catalogue, shop.settings, ranges=planned
            )
        return self._counts


class Models(Protocol):
    """Finds and loads the models that the settings name."""

    def find(self, settings: Settings, aspect: Aspect) -> weights.ModelFiles | None:
        """The files of an aspect's model on this machine; None where they are not here."""
        ...

    def load(
        self, settings: Settings, report: Callable[[str], None]
    ) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect, ready to work. Raises `WeightsError`."""
        ...


class LocalModels:
    """Models that run in this process; each is loaded once, since loading takes seconds."""

    _loaded: ClassVar[dict[str, Embedder]] = {}

    def find(self, settings: Settings, aspect: Aspect) -> weights.ModelFiles | None:
        """The files of an aspect's model on this machine; None where they are not here."""
        model = settings.aspects[aspect]
        return weights.find(
            model.model, revision=model.revision, path=model.path, cache=settings.model_cache
        )

    def load(
        self, settings: Settings, report: Callable[[str], None]
    ) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect; its files are fetched where they are missing, and verified."""
        models = {}
        for aspect in Aspect:
            fingerprint = settings.fingerprint(aspect)
            if fingerprint not in self._loaded:
                self._loaded[fingerprint] = _loaded(settings, aspect, report)
            models[aspect] = AspectModel(fingerprint, self._loaded[fingerprint])
        return models


def _loaded(settings: Settings, aspect: Aspect, report: Callable[[str], None]) -> Embedder:
    from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder

    model = settings.aspects[aspect]
    files = weights.fetch(
        model.model,
        revision=model.revision,
        path=model.path,
        cache=settings.model_cache,
        report=report,
    )
    report(f"Loading {model.model}.")
    return SentenceTransformerEmbedder(
        files.folder,
        dimensions=model.dimensions,
        prefix=model.prefix,
        normalize=model.normalize,
        max_tokens=model.max_tokens,
    )


def _shop(context: dg.InitResourceContext) -> ShopAccess:
    if context.run is not None and context.instance is not None:
        # Lets `fail_orphaned_runs` see whether the run's process still lives.
        context.instance.add_run_tags(context.run.run_id, dict(process_tag()))
    return ShopAccess()


def resources(models: Models | None = None) -> dict[str, Any]:
    """The resources of a run that Dagster starts; `models` None: local models."""
    return {
        "shop": dg.ResourceDefinition(
            _shop, description="The shop's database, as ingestion.toml and DATABASE_URL name it."
        ),
        "models": dg.ResourceDefinition(
            lambda _: models or LocalModels(),
            description="The embedding models, loaded once a process.",
        ),
        "recorder": dg.ResourceDefinition(
            lambda _: Recorder(), description="Who listens to the run beside Dagster's log."
        ),
    }

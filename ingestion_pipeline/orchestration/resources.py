"""What the assets are given: the shop, the models, and somebody to talk to.

Everything is lazy. Settings are read, the database is opened and a model is loaded when a run asks
for them, so that the definitions load on a machine that has none of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import dagster as dg

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import CountFacts, count_facts
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.embedding import local_models, weights
from ingestion_pipeline.embedding.embedder import Embedder, Embeddings
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.runs import process_tag
from ingestion_pipeline.preflight import ModelFacts
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
                shop.connection.live, shop.catalogue, shop.settings, ranges=planned
            )
        return self._counts


class Models(Protocol):
    """Inspects and gives the models that the settings name."""

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        """What preflight judges of each model; fetches nothing."""
        ...

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect. `report` hears of what takes time."""
        ...


class LocalModels:
    """Models that run in this process; each is loaded once, when its first text comes."""

    _loaded: ClassVar[dict[str, Embedder]] = {}

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        """One fact a model, with all the aspects that it serves; reads files, to verify them."""
        served: dict[tuple[str, Path | None], list[Aspect]] = {}
        for aspect in Aspect:
            files = (settings.fingerprint(aspect), settings.aspects[aspect].path)
            served.setdefault(files, []).append(aspect)
        return tuple(_facts(settings, tuple(aspects)) for aspects in served.values())

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect; working with one raises `WeightsError` if it is not to be had.

        Files are fetched where they are missing, and verified.
        """
        return {aspect: self._model(settings, aspect, report) for aspect in Aspect}

    def _model(
        self, settings: Settings, aspect: Aspect, report: Callable[[str], None]
    ) -> AspectModel:
        fingerprint, model = settings.fingerprint(aspect), settings.aspects[aspect]

        def load() -> Embedder:
            if fingerprint not in self._loaded:
                self._loaded[fingerprint] = local_models.load(model, settings.model_cache, report)
            return self._loaded[fingerprint]

        return AspectModel(fingerprint, LazyEmbedder(model.dimensions, load))


@dataclass(frozen=True)
class LazyEmbedder:
    """An embedder that is made when its first text comes: a run without texts loads no model."""

    dimensions: int
    load: Callable[[], Embedder]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the embedder counts them."""
        return self.load().count_tokens(texts) if texts else []

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """As the embedder does."""
        return self.load().embed(texts)


def _facts(settings: Settings, aspects: tuple[Aspect, ...]) -> ModelFacts:
    model = settings.aspects[aspects[0]]
    files = weights.find(
        model.model, revision=model.revision, path=model.path, cache=settings.model_cache
    )
    if files is None:
        return ModelFacts(model.model, aspects, source=None, pinned=False, bytes=0)
    return ModelFacts(
        model.model,
        aspects,
        source=files.source,
        pinned=files.pinned,
        bytes=files.bytes,
        problems=tuple(weights.verify(files)),
    )


def _shop(context: dg.InitResourceContext) -> ShopAccess:
    if context.run is not None and context.instance is not None:
        # Lets `end_orphans` see whether the run's process still lives.
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

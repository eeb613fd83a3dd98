"""The models that the settings name, on this machine or behind an API, ready for the work loop.

Everything is lazy: a model is loaded, and an endpoint spoken to, when the first text comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from pydantic import SecretStr

from ingestion_pipeline.asking import CONTROL_TEXT
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.batching import BatchLimits
from ingestion_pipeline.database.governor import Budget, Pace, SharedGovernor
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.embedding import local_models, weights
from ingestion_pipeline.embedding.congestion import RequestsAtOnce
from ingestion_pipeline.embedding.embedder import Embedder, Embeddings
from ingestion_pipeline.embedding.governor import Governor, Unshared
from ingestion_pipeline.endpoints import check_reachable_addresses, parsed
from ingestion_pipeline.errors import IngestionError, SettingsError
from ingestion_pipeline.in_flight import Lane
from ingestion_pipeline.patience import Patience
from ingestion_pipeline.preflight import ModelFacts
from ingestion_pipeline.preflight_services import ServiceFacts
from ingestion_pipeline.prices import Price, price_of
from ingestion_pipeline.providers import PROVIDERS
from ingestion_pipeline.reingestion import AspectModel
from ingestion_pipeline.settings import AspectSettings, Settings
from ingestion_pipeline.work import Spend

if TYPE_CHECKING:
    from ingestion_pipeline.embedding.openai_api import OpenAIEmbedder

PROBE_SECONDS = 10.0
"""So long preflight puts up with an endpoint that is not well."""


class Models(Protocol):
    """Inspects and gives the models that the settings name."""

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        """What preflight judges of each model; fetches nothing."""
        ...

    def services(self, settings: Settings) -> tuple[ServiceFacts, ...]:
        """What preflight judges of each API; asks each model there for one text."""
        ...

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect. `report` hears of what takes time."""
        ...


class ConfiguredModels:
    """Models in this process, each loaded once, and models behind APIs.

    `sends` False: texts are only counted, for which no key is needed.
    """

    _loaded: ClassVar[dict[str, Embedder]] = {}

    def __init__(self, *, sends: bool = True) -> None:
        self._key = api_key if sends else _no_key

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        """One fact a model, with all the aspects that it serves; reads files, to verify them."""
        served: dict[tuple[str, Path | None], list[Aspect]] = {}
        for aspect in Aspect:
            if settings.aspects[aspect].is_remote:
                continue
            files = (settings.fingerprint(aspect), settings.aspects[aspect].path)
            served.setdefault(files, []).append(aspect)
        return tuple(_facts(settings, tuple(aspects)) for aspects in served.values())

    def services(self, settings: Settings) -> tuple[ServiceFacts, ...]:
        """One fact for each model of each endpoint, with all the aspects that it serves."""
        served: dict[str, list[Aspect]] = {}
        for aspect in Aspect:
            if settings.aspects[aspect].is_remote:
                served.setdefault(settings.fingerprint(aspect), []).append(aspect)
        return tuple(probed(settings, tuple(aspects)) for aspects in served.values())

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        """The model of each aspect; working with one raises `WeightsError` if it is not to be had.

        Files are fetched where they are missing, and verified.
        """
        made: dict[str, AspectModel] = {}
        at_once: dict[str, RequestsAtOnce] = {}
        for aspect in Aspect:
            model, fingerprint = settings.aspects[aspect], settings.fingerprint(aspect)
            if fingerprint in made:
                continue
            if model.is_remote:
                # Two lengths of one model's vectors are one stream of requests to its endpoint.
                shared = at_once.setdefault(
                    endpoint_name(model), RequestsAtOnce(model.requests_at_once)
                )
                made[fingerprint] = remote_model(settings, aspect, shared, key=self._key)
            else:
                made[fingerprint] = self._local(settings, aspect, report)
        return {aspect: made[settings.fingerprint(aspect)] for aspect in Aspect}

    def _local(
        self, settings: Settings, aspect: Aspect, report: Callable[[str], None]
    ) -> AspectModel:
        fingerprint, model = settings.fingerprint(aspect), settings.aspects[aspect]

        def load() -> Embedder:
            if fingerprint not in self._loaded:
                self._loaded[fingerprint] = local_models.load(model, settings.model_cache, report)
            return self._loaded[fingerprint]

        return AspectModel(fingerprint, LazyEmbedder(model.dimensions, load))


@runtime_checkable
class Closable(Protocol):
    """Holds connections."""

    def close(self) -> None:
        """Give them back."""
        ...


@dataclass(frozen=True)
class LazyEmbedder:
    """An embedder that is made when its first text comes: a run without texts loads no model."""

    dimensions: int
    load: Callable[[], Embedder]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the embedder counts them."""
        return self._embedder.count_tokens(texts) if texts else []

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """As the embedder does."""
        return self._embedder.embed(texts)

    def close(self) -> None:
        """Close what is open of a model behind an API; the next text opens it again."""
        embedder = self.__dict__.pop("_embedder", None)
        if isinstance(embedder, Closable):
            embedder.close()

    @cached_property
    def _embedder(self) -> Embedder:
        return self.load()


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


def remote_model(
    settings: Settings,
    aspect: Aspect,
    at_once: RequestsAtOnce,
    key: Callable[[AspectSettings], SecretStr | None] | None = None,
) -> AspectModel:
    """The model of an aspect behind an API; `at_once` is shared by all models of its endpoint.

    `key` gives the endpoint's key; None: from the environment.
    """
    model = settings.aspects[aspect]
    fingerprint = settings.fingerprint(aspect)
    governor = SharedGovernor(
        lambda: Session(_database_url(settings)),
        endpoint_name(model),
        fingerprint,
        pace=Pace(model.requests_per_minute, model.tokens_per_minute),
        budget=Budget(
            {
                settings.fingerprint(it): price(settings.aspects[it])
                for it in Aspect
                # What a model on this machine has counted is not spent.
                if settings.aspects[it].is_remote
            },
            settings.budget.tokens,
            settings.budget.dollars,
        ),
    )

    def connect() -> Embedder:
        return _connected(model, governor, at_once, (key or api_key)(model))

    embedder = LazyEmbedder(model.dimensions, connect)

    def close() -> None:
        embedder.close()
        governor.close()

    return AspectModel(
        fingerprint,
        embedder,
        limits=BatchLimits(
            tokens=model.tokens_per_request,
            texts=model.texts_per_request,
            bytes=model.bytes_per_request,
            padded=False,
        ),
        lane=Lane(endpoint_name(model), lambda: at_once.limit, threads=True),
        turn=governor.reserve,
        price=price(model),
        close=close,
    )


def probed(
    settings: Settings, aspects: tuple[Aspect, ...], environ: Mapping[str, str] = os.environ
) -> ServiceFacts:
    """What the endpoint of some aspects says to one text."""
    model = settings.aspects[aspects[0]]
    endpoint = parsed(str(model.base_url))
    facts = ServiceFacts(
        model.model,
        aspects,
        host=endpoint.host,
        expected_dimensions=model.dimensions,
        price=price(model),
    )
    try:
        check_reachable_addresses(endpoint, private_network=model.private_network)
        embedder = _connected(model, Unshared(), RequestsAtOnce(1), api_key(model, environ))
        try:
            answer = Patience(PROBE_SECONDS)(lambda: embedder.probe(CONTROL_TEXT))
        finally:
            embedder.close()
    except IngestionError as error:
        return replace(facts, problem=str(error))
    return replace(facts, dimensions=answer.dimensions, limits=answer.limits, tokens=answer.tokens)


def probe_spend(settings: Settings, service: ServiceFacts) -> Spend:
    """What asking that one text took."""
    return Spend(
        fingerprint=settings.fingerprint(service.aspects[0]),
        requests=1,
        tokens=service.tokens,
        cost=service.price.of(service.tokens),
        price_version=service.price.version,
    )


def _connected(
    model: AspectSettings,
    governor: Governor,
    at_once: RequestsAtOnce,
    key: SecretStr | None,
) -> OpenAIEmbedder:
    from ingestion_pipeline.embedding.openai_api import Model, OpenAIEmbedder
    from ingestion_pipeline.embedding.token_counts import token_counts

    return OpenAIEmbedder(
        Model(
            model.model,
            model.dimensions,
            sends_dimensions=bool(model.send_dimensions),
            prefix=model.prefix,
            normalize=model.normalize,
            max_tokens=model.max_tokens,
            answers_as=model.answers_as,
            base64=PROVIDERS[model.service or "other"].takes_base64,
        ),
        endpoint=parsed(str(model.base_url)),
        key=key,
        private_network=model.private_network,
        timeout=model.timeout_seconds,
        tokens=token_counts(model.tokenizer),
        governor=governor,
        at_once=at_once,
    )


def api_key(model: AspectSettings, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """The key of a model's endpoint; None where it needs none.

    Raises `SettingsError` where it does, and there is none.
    """
    name = model.api_key_variable
    key = environ.get(name, "").strip() if name else ""
    if key:
        return SecretStr(key)
    if PROVIDERS[model.service or "other"].needs_key:
        raise SettingsError(
            f"{name} is not set: the key for {model.base_url}. Export it where `ingest` and "
            "Dagster run; it is never read from a file."
        )
    return None


def endpoint_name(model: AspectSettings) -> str:
    """What shares a quota: a model at an endpoint."""
    return f"{model.base_url} {model.model}"


def _no_key(_: AspectSettings) -> None:
    return None


def price(model: AspectSettings) -> Price:
    """What a model's tokens cost; what runs on this machine costs nothing that is counted."""
    if not model.is_remote:
        return Price(None, "local")
    return price_of(
        model.model,
        provider=PROVIDERS[model.service or "other"].price_provider,
        base_url=str(model.base_url),
        override=model.dollars_per_million_tokens,
    )


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set: the pace of requests is kept there.")
    return settings.database_url.get_secret_value()

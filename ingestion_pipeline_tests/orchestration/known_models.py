"""Models whose vectors are known without a model, for runs in this process and in others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.preflight import ModelFacts
from ingestion_pipeline.preflight_services import ServiceFacts
from ingestion_pipeline.reingestion import AspectModel
from ingestion_pipeline.settings import Settings
from ingestion_pipeline_tests.shops import KnownEmbedder

SECONDS = "KNOWN_MODELS_SECONDS"
RECORD = "KNOWN_MODELS_RECORD"


@dataclass
class KnownModels:
    """Gives a `KnownEmbedder` for each fingerprint, and remembers what was sent to them.

    `problems` are what preflight finds wrong with the files. `before` is called with each batch
    before it is embedded, and may raise.
    """

    problems: tuple[str, ...] = ()
    before: Callable[[Sequence[str]], None] = lambda _: None
    embedders: dict[str, KnownEmbedder] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [text for embedder in self.embedders.values() for text in embedder.texts]

    def services(self, _: Settings) -> tuple[ServiceFacts, ...]:
        return ()

    def facts(self, settings: Settings) -> tuple[ModelFacts, ...]:
        model = settings.aspects[Aspect.DESCRIPTION].model
        return (
            ModelFacts(
                model,
                tuple(Aspect),
                source="the tests",
                pinned=True,
                bytes=0,
                problems=self.problems,
            ),
        )

    def of(self, settings: Settings, report: Callable[[str], None]) -> Mapping[Aspect, AspectModel]:
        report("Known models are ready.")
        return {aspect: self._model(settings, aspect) for aspect in Aspect}

    def _model(self, settings: Settings, aspect: Aspect) -> AspectModel:
        def answer(texts: Sequence[str], right: Embeddings) -> Embeddings:
            self.before(texts)
            return right

        fingerprint = settings.fingerprint(aspect)
        known = KnownEmbedder(settings.aspects[aspect].dimensions, answer=answer)
        return AspectModel(fingerprint, self.embedders.setdefault(fingerprint, known))


def slow_models() -> KnownModels:
    """Models of another process: the environment says how slow, and where each text is noted."""

    def note(texts: Sequence[str]) -> None:
        record = os.environ.get(RECORD)
        if record:
            with Path(record).open("a", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in texts)
        time.sleep(float(os.environ.get(SECONDS, "0")))

    return KnownModels(before=note)

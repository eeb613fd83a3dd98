"""`ingest models`: which model embeds each aspect, and whether its files are here and right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.settings import AspectSettings, Settings, load_settings

_Key = tuple[str, str | None, Path | None]


@dataclass(frozen=True)
class _Model:
    """A model's files as they are; None where there are none."""

    files: weights.ModelFiles | None
    problems: list[str]

    @property
    def status(self) -> str:
        if self.files is None or self.problems:
            return "fail"
        return "pass" if self.files.pinned else "unknown"

    @property
    def said(self) -> str:
        if self.files is None:
            return "missing"
        if self.problems:
            return "not the pinned files"
        return "verified" if self.files.pinned else "present, not pinned: nothing to compare with"


def models(*, fetch: bool, as_json: bool) -> int:
    """Show them, after fetching what is missing where asked to. Hashing takes about a second."""
    settings = load_settings()
    found = {_key(model): _looked_at(model, settings, fetch) for model in settings.aspects.values()}
    ready = all(model.status != "fail" for model in found.values())
    code = ExitCode.OK if ready else ExitCode.OUTAGE
    if as_json:
        terminal.print_json(
            {
                "ready": ready,
                "cache": str(settings.model_cache),
                "aspects": {
                    aspect.value: _as_dict(aspect, settings, found[_key(settings.aspects[aspect])])
                    for aspect in Aspect
                },
            }
        )
        return code
    for aspect in Aspect:
        model = settings.aspects[aspect]
        state = found[_key(model)]
        text = f"{model.model}, {model.dimensions} dimensions, {state.said}"
        lines = [str(state.files.folder)] if state.files else []
        terminal.judged(state.status, aspect.value, "\n".join([text, *lines, *state.problems]))
    if not ready:
        terminal.say()
        terminal.next_step("`ingest models --fetch` fetches and verifies them.")
    return code


def fetch_all(settings: Settings) -> None:
    """Have every aspect's model here, verified; tell what takes time on stderr."""
    for model in {_key(model): model for model in settings.aspects.values()}.values():
        _looked_at(model, settings, fetch=True)


def _key(model: AspectSettings) -> _Key:
    return model.model, model.revision, model.path


def _looked_at(model: AspectSettings, settings: Settings, fetch: bool) -> _Model:
    revision, path, cache = model.revision, model.path, settings.model_cache
    if fetch:
        files = weights.fetch(
            model.model, revision=revision, path=path, cache=cache, report=terminal.note
        )
        return _Model(files, [])
    found = weights.find(model.model, revision=revision, path=path, cache=cache)
    return _Model(found, weights.verify(found) if found else [])


def _as_dict(aspect: Aspect, settings: Settings, state: _Model) -> dict[str, object]:
    model = settings.aspects[aspect]
    return {
        "model": model.model,
        "revision": model.revision,
        "dimensions": model.dimensions,
        "max_tokens": model.max_tokens,
        "fingerprint": settings.fingerprint(aspect),
        "folder": str(state.files.folder) if state.files else None,
        "source": state.files.source if state.files else None,
        "bytes": state.files.bytes if state.files else None,
        "status": state.said,
        "problems": state.problems,
    }

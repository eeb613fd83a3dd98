"""A model of the user's own is known by what its files hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.model_contents import contents_digest
from ingestion_pipeline.settings import MPNET, AspectSettings, Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def _settings(path: Path, revision: str | None) -> Settings:
    nowhere = Path("/nonexistent")
    model = AspectSettings(
        model=MPNET, revision=revision, dimensions=768, max_tokens=384, path=path
    )
    return Settings(aspects=dict.fromkeys(Aspect, model), home=nowhere, model_cache=nowhere)


def test_other_weights_under_the_same_name_are_another_fingerprint(folder: Path) -> None:
    settings = _settings(folder, revision=None)
    before = settings.fingerprint(Aspect.USAGE)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert settings.fingerprint(Aspect.USAGE) != before


def test_the_same_files_in_another_folder_are_the_same_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    before = _settings(folder, revision=None).fingerprint(Aspect.USAGE)
    moved = folder.rename(tmp_path / "moved")
    assert _settings(moved, revision=None).fingerprint(Aspect.USAGE) == before


def test_a_pinned_model_is_known_by_its_revision_wherever_its_files_lie(folder: Path) -> None:
    pinned = _settings(folder, revision="1" * 40)
    before = pinned.fingerprint(Aspect.USAGE)
    (folder / "model.safetensors").write_bytes(b"others")
    assert pinned.fingerprint(Aspect.USAGE) == before


def test_what_is_no_part_of_a_model_does_not_count(folder: Path) -> None:
    before = contents_digest(folder)
    (folder / "README.md").write_text("about the model")
    assert contents_digest(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    assert contents_digest(folder) != before


def test_a_folder_that_is_not_there_has_no_contents(tmp_path: Path) -> None:
    assert contents_digest(tmp_path / "nowhere") is None

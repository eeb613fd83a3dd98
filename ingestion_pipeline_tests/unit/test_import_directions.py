"""Who may know whom. The contracts are in pyproject.toml; here they are held, and shown to hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "ingestion_pipeline"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "ingestion_pipeline_tests").rglob("*.py"))

# Seconds each: imported where they are needed, so that `ingest --help` does not wait for them.
HEAVY = {"torch", "sentence_transformers", "transformers", "pandas", "pyarrow", "matplotlib"}


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def test_every_import_goes_in_the_direction_of_the_contracts() -> None:
    answer = _lint(REPOSITORY)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "0 broken" in answer.stdout


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("database", "import ingestion_pipeline.cli", "knows only what is below it"),
        ("ranges", "import ingestion_pipeline.database", "knows only what is below it"),
        ("newcomer", "", "knows only what is below it"),
        ("preflight", "import dagster", "Only orchestration knows Dagster"),
        ("orchestration", "import rich", "Only cli knows Typer and Rich"),
        ("reingestion", "import psycopg", "Only what runs SQL knows psycopg"),
        ("cli", "import torch", "Only the engine knows the model libraries"),
    ],
)
def test_an_import_against_a_contract_is_caught(
    module: str, statement: str, contract: str, tmp_path: Path
) -> None:
    """A package of the same outline, with this one import."""
    settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    # In the outline nothing else is imported, so there is nothing to make an exception for.
    settings = settings.replace(
        'type = "forbidden"', 'type = "forbidden"\nunmatched_ignore_imports_alerting = "none"'
    )
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            folder = tmp_path / "ingestion_pipeline" / path.stem.replace("__init__", "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
    changed = tmp_path / "ingestion_pipeline" / module
    changed.mkdir(exist_ok=True)
    (changed / "__init__.py").write_text(statement)
    answer = _lint(tmp_path)
    assert answer.returncode != 0, answer.stdout
    assert f"{contract} BROKEN" in answer.stdout or "newcomer" in answer.stdout


def _imports(file: Path, *, everywhere: bool) -> Iterator[str]:
    """Names of imported modules: everywhere, or only where importing the file imports them."""
    statements: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield statement.module or ""
        elif not everywhere and (
            isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test))
        ):
            continue
        statements += ast.iter_child_nodes(statement)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_heavy_is_imported_with_a_module(file: Path) -> None:
    heavy = HEAVY if "orchestration" in file.parts else HEAVY | {"dagster"}
    imported = {name.partition(".")[0] for name in _imports(file, everywhere=False)}
    assert imported & heavy == set()


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=lambda file: file.name)
def test_no_other_librarys_private_module_is_imported(file: Path) -> None:
    private = {
        name
        for name in _imports(file, everywhere=True)
        if not name.startswith("ingestion_pipeline")
        and any(part.startswith("_") and part != "__future__" for part in name.split("."))
    }
    assert private == set()

"""Take each safeguard away, one at a time, in a copy of the project: the tests must notice.

`make safeguards` prints, for each, how many of its tests fail without it. A safeguard whose absence
no test notices makes the command fail, and so does a test that fails with everything in place.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "ingestion_pipeline_tests"
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")


@dataclass(frozen=True)
class Edit:
    """A piece of a file, and what stands there without the safeguard."""

    file: str
    there: str
    instead: str


@dataclass(frozen=True)
class Safeguard:
    """What protects the data, the edits that take it away, and the tests that are to notice."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


SAFEGUARDS = (
    Safeguard(
        "the fence: a writer that was taken over writes nothing",
        (Edit("sql/renew_lease.sql", " AND fence = %(fence)s", ""),),
        (f"{TESTS}/database/test_embeddings.py", "-k", "fences_only_grow or expired_lease"),
    ),
    Safeguard(
        "the lease: two runs never work on the same ids",
        (Edit("sql/overlapping_leases.sql", "ORDER BY", "    AND false\nORDER BY"),),
        (f"{TESTS}/database/test_embeddings.py", "-k", "keeps_others_off"),
    ),
    Safeguard(
        "a locked lease lives: no claim waits for a writer that sleeps",
        (Edit("sql/delete_dead_leases.sql", "FOR UPDATE SKIP LOCKED", ""),),
        (f"{TESTS}/faults/test_two_runs.py", "-k", "does_not_wait_for_a_writer"),
    ),
    Safeguard(
        "the digest guard: no vector of an old text is marked done",
        (
            Edit(
                "sql/delete_outdated_incoming.sql",
                "        AND sha256(convert_to(coalesce(aspect_text.text, ''), 'UTF8'))"
                " = incoming.text_digest\n",
                "",
            ),
        ),
        (f"{TESTS}/faults/test_changing_catalogue.py", "-k", "done_in_the_same_run"),
    ),
    Safeguard(
        "the ledger's transaction: vector, ledger and spend together or not at all",
        (
            Edit("sql/create_incoming.sql", "ON COMMIT DELETE ROWS", "ON COMMIT PRESERVE ROWS"),
            Edit(
                "ingestion_pipeline/database/embeddings.py",
                'self._execute("create_incoming")\n            with self._session.transaction():',
                'self._execute("create_incoming")\n'
                '            if self._session.execute("TRUNCATE pg_temp.incoming"):',
            ),
        ),
        (f"{TESTS}/database/test_reingestion_on_postgres.py", "-k", "written_together"),
    ),
    Safeguard(
        "a commit whose reply was lost is not made twice",
        (
            Edit(
                "ingestion_pipeline/database/embeddings.py",
                "if self._record_spends(owner, written, spends):",
                "if self._record_spends(owner, written, spends) or True:",
            ),
        ),
        (f"{TESTS}/database/test_reingestion_on_postgres.py", "-k", "same_commit_again"),
    ),
    Safeguard(
        "the zero-vector check: what an index never finds is never stored",
        (
            Edit(
                "ingestion_pipeline/embedding/embedder.py",
                "np.isfinite(norms) & (norms >= SMALLEST_NORM)",
                "np.isfinite(norms)",
            ),
        ),
        (f"{TESTS}/faults/test_embedder_faults.py", "-k", "zero"),
    ),
    Safeguard(
        "finite vectors only",
        (
            Edit(
                "ingestion_pipeline/embedding/embedder.py",
                "np.isfinite(norms) & (norms >= SMALLEST_NORM)",
                "~(norms < SMALLEST_NORM)",
            ),
        ),
        (f"{TESTS}/unit/test_reingestion.py", "-k", "unusable"),
    ),
    Safeguard(
        "an answer's rows in the order of its texts",
        (
            Edit(
                "ingestion_pipeline/embedding/embedder.py",
                "    if indexes is None:\n        return embeddings\n",
                "    if indexes is not None or True:\n        return embeddings\n",
            ),
        ),
        (f"{TESTS}/faults/test_embedder_faults.py", "-k", "another_order"),
    ),
    Safeguard(
        "no product is blamed for a model that has no usable answer",
        (
            Edit(
                "ingestion_pipeline/asking.py",
                "        if bad:\n            self.reasons.clear()\n",
                "        if bad and False:\n            self.reasons.clear()\n",
            ),
        ),
        (f"{TESTS}/unit/test_reingestion.py", "-k", "without_one_usable_answer"),
    ),
    Safeguard(
        "reuse: a text is embedded once for one model",
        (
            Edit(
                "ingestion_pipeline/reingestion.py",
                "known = self.patience(lambda: self.store.known_vectors(wanted))",
                "known = self.patience(lambda: self.store.known_vectors({}))",
            ),
        ),
        (f"{TESTS}/unit/test_reingestion.py", "-k", "goes_to_a_model_once"),
    ),
    Safeguard(
        "the watch: a line that swallows everything is given up",
        (
            Edit(
                "ingestion_pipeline/database/session.py",
                "if not self.is_worth_waiting_for():",
                "if False:",
            ),
        ),
        (f"{TESTS}/faults/test_connection.py", "-k", "silence_at_any_moment", "--timeout=60"),
    ),
    Safeguard(
        "a transaction is never carried on over another connection",
        (
            Edit(
                "ingestion_pipeline/database/session.py",
                "if self.lost and not self._in_transaction:",
                "if self.lost:",
            ),
        ),
        (f"{TESTS}/database/test_session.py",),
    ),
)


def main() -> int:
    """Try every safeguard; 0 where the absence of each is noticed."""
    unnoticed = []
    with tempfile.TemporaryDirectory(prefix="safeguards-") as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
        for safeguard in SAFEGUARDS:
            failing = _failing(copy, safeguard.tests)
            if failing:
                _say(f"✗ {safeguard.name}: {failing} tests fail with it in place")
                unnoticed.append(safeguard)
                continue
            failing = _failing_without(copy, safeguard)
            _say(f"{'✓' if failing else '✗'} {safeguard.name}: {failing} tests fail without it")
            if not failing:
                unnoticed.append(safeguard)
    return 1 if unnoticed else 0


def _failing_without(copy: Path, safeguard: Safeguard) -> int:
    before = {edit.file: (copy / edit.file).read_text(encoding="utf-8") for edit in safeguard.edits}
    try:
        for edit in safeguard.edits:
            text = (copy / edit.file).read_text(encoding="utf-8")
            if edit.there not in text:
                raise SystemExit(f"{edit.file} does not hold what stands for: {safeguard.name}")
            (copy / edit.file).write_text(text.replace(edit.there, edit.instead), encoding="utf-8")
        return _failing(copy, safeguard.tests)
    finally:
        for file, text in before.items():
            (copy / file).write_text(text, encoding="utf-8")


def _failing(copy: Path, tests: Sequence[str]) -> int:
    """How many tests of the copy fail; raises where they cannot even be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}:\n{result.stdout}\n{result.stderr}")
    found = re.search(r"(\d+) (?:failed|error)", result.stdout)
    return int(found[1]) if found else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""A shop whose models are behind the test server's API, for runs in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from psycopg import sql
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from ingestion_pipeline.asking import CONTROL_TEXT
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.shop import Shop, open_shop
from ingestion_pipeline.settings import Settings, load_settings
from ingestion_pipeline.texts import cleaned
from ingestion_pipeline_tests.embedding_server.counters import Counters
from ingestion_pipeline_tests.embedding_server.running import Server
from ingestion_pipeline_tests.embedding_server.vectors import tokens_of, vector_of
from ingestion_pipeline_tests.faults import api_worker
from ingestion_pipeline_tests.faults.audit import Audit, audit
from ingestion_pipeline_tests.shops import DIMENSIONS, MODELS

REPOSITORY = Path(__file__).parents[2]
SERVED = {MODELS[aspect]: DIMENSIONS[aspect] for aspect in Aspect}
"""The models that the server must have, and the numbers in their vectors."""

TEXTS_PER_REQUEST = 4
REQUESTS_AT_ONCE = 8
MODELS_SERVED = len(SERVED)
_DEADLINE_SECONDS = 120.0


def write_tokenizer(file: Path) -> None:
    """A `tokenizer.json` that counts words and signs as the server does."""
    tokenizer = tokenizers.Tokenizer(WordLevel({"[U]": 0, "[S]": 1, "[E]": 2}, unk_token="[U]"))
    tokenizer.pre_tokenizer = Split(tokenizers.Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", 1), ("[E]", 2)]
    )
    tokenizer.save(str(file))


@dataclass(frozen=True)
class ApiShop:
    """A database with products, a folder for the settings, and the server that embeds."""

    url: str
    folder: Path
    server: Server

    def settings(
        self, *, requests_at_once: int = REQUESTS_AT_ONCE, embedding: str = "", other: str = ""
    ) -> Settings:
        """Written to a file and read again; `embedding` and `other` are further lines of it."""
        tokenizer = self.folder / "tokenizer.json"
        if not tokenizer.exists():
            write_tokenizer(tokenizer)
        aspects = "".join(
            f'[aspects.{aspect}]\nmodel = "{MODELS[aspect]}"\ndimensions = {DIMENSIONS[aspect]}\n'
            for aspect in Aspect
        )
        self._file.write_text(
            f'[embedding]\nprovider = "openai"\nbase_url = "{self.server.base_url}"\n'
            f'tokenizer = "{tokenizer}"\ntexts_per_request = {TEXTS_PER_REQUEST}\n'
            f"requests_at_once = {requests_at_once}\n{embedding}\n{aspects}"
            f"[ranges]\nproducts_per_range = 4\n{other}\n"
        )
        return load_settings(self._file, self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that works for this shop."""
        return dict(os.environ) | {
            "DATABASE_URL": self.url,
            "INGESTION_SETTINGS": str(self._file),
            "INGESTION_HOME": str(self.folder / "home"),
        }

    @contextmanager
    def working(self, worker: int = 0) -> Iterator[subprocess.Popen[str]]:
        """A process that re-ingests the shop, killed at the end of the block if still there."""
        self._begun(worker).unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-m", api_worker.__name__, str(worker), str(self._begun(worker))],
            cwd=REPOSITORY,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait_until_begun(self, process: subprocess.Popen[str], worker: int = 0) -> None:
        """Until a worker has loaded its modules and begins to work."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not self._begun(worker).exists() and process.poll() is None:
            assert time.monotonic() < deadline, "the worker does not begin"
            time.sleep(0.005)

    def work(self, workers: int = 1) -> list[tuple[int, str]]:
        """So many processes at once, each to its end: their exit codes, and what they said."""
        if workers == 0:
            return []
        with self.working(workers) as process:
            others = self.work(workers - 1)
            _, said = process.communicate(timeout=_DEADLINE_SECONDS)
            return [(process.returncode, said), *others]

    def _begun(self, worker: int) -> Path:
        return self.folder / f"{api_worker.BEGUN}-{worker}"

    @property
    def _file(self) -> Path:
        return self.folder / "ingestion.toml"


def found(shop: Shop, counters: Counters) -> Audit:
    """What a shop has come to, by what the server has billed."""
    texts = [text for text in counters.texts.elements() if text != CONTROL_TEXT]
    return audit(shop, texts, vector_of)


def ledger_spend(shop: Shop) -> tuple[int, int]:
    """Requests and tokens that the shop has on record."""
    query = "SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0) FROM ingestion.spend"
    [(requests, tokens)] = shop.connection.execute(query).fetchall()
    return int(requests), int(tokens)


def tokens_needed(shop: Shop) -> int:
    """What the server bills for every text once."""
    mapping = sql.SQL(shop.queries.product_texts())
    query = sql.SQL("SELECT DISTINCT text FROM ({}\n) AS mapped").format(mapping)
    return sum(tokens_of(cleaned(text)) for (text,) in shop.connection.execute(query).fetchall())


@contextmanager
def opened(settings: Settings) -> Iterator[Shop]:
    """The shop, prepared."""
    with open_shop(settings) as shop:
        shop.prepare()
        yield shop

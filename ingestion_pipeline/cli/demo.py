"""`ingest demo`: everything, once, on a small shop of our own and never on anybody else's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ingestion_pipeline.cli import main_job, models, terminal
from ingestion_pipeline.cli import search as searching
from ingestion_pipeline.cli.environment import data_directory_of, database_url, prepare
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.products_table import V1, V2
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.sample_shop import SampleShop
from ingestion_pipeline.database.shop import open_shop
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.embedding.pinned_models import ALL_MINILM_L6_V2
from ingestion_pipeline.errors import PreflightError, SettingsError
from ingestion_pipeline.progress import Progress
from ingestion_pipeline.settings import Settings

if TYPE_CHECKING:
    from ingestion_pipeline.cli.terminal import RunListener

WORDS = "a warm coat for a rainy walk"
HITS = 5


def demo(*, as_json: bool) -> int:
    """Database, models, shop, the whole pipeline, one search; each step only where needed."""
    with terminal.RunListener(as_json=as_json) as listener:
        listener.stage("Database")
        settings = _database(listener)
        listener.stage("Models")
        models.fetch_all(settings)
        listener.line("every file is here and verified")
        listener.stage("Sample shop")
        _make_shop(settings, listener)
        try:
            outcome = main_job.run(settings, listener)
        except PreflightError as error:
            return main_job.no_go(error, listener.verdicts, as_json=as_json)
    code = main_job.code_of(outcome)
    document = main_job.as_dict(outcome)
    if not as_json:
        main_job.show_outcome(outcome)
    with open_shop(settings) as shop:
        hits = searching.hits_for(WORDS, shop, HITS)
    document["search"] = searching.as_dict(WORDS, hits)
    if not as_json:
        terminal.say()
        terminal.say(f'Search for "{WORDS}"', style="bold")
        searching.show(hits)
    if as_json:
        terminal.print_json(document | {"exit_code": code})
        return code
    _say_what_to_try()
    return code


def _database(listener: RunListener) -> Settings:
    environment = prepare(dagster=True, report=listener.line)
    if not environment.embedded:
        raise SettingsError(
            "The demo works on the embedded database only, and DATABASE_URL names another.\n"
            "→ unset DATABASE_URL for the demo; `ingest preflight` begins on your own shop."
        )
    listener.line(f"embedded PostgreSQL in {data_directory_of(environment.settings)}")
    return environment.settings


def _make_shop(settings: Settings, listener: RunListener) -> None:
    names = settings.catalogue
    queries = Queries(tables={"products": names.products, V1: names.v1, V2: names.v2})
    with connect(database_url(settings)) as connection:
        shop = SampleShop(connection, queries)
        made = shop.create()
        listener.line(f"{made:,} products made" if made else "it is there already")
        texts = shop.texts_without_v1()
        if texts:
            _fill_v1(shop, texts, settings, listener)


def _fill_v1(
    shop: SampleShop,
    texts: list[tuple[str, list[int]]],
    settings: Settings,
    listener: RunListener,
) -> None:
    from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder

    total = sum(len(ids) for _, ids in texts)
    listener.line(f"embedding {total:,} products for v1, one vector each, as the shop has it today")
    model = ALL_MINILM_L6_V2
    files = weights.fetch(
        model.name, revision=None, path=None, cache=settings.model_cache, report=listener.line
    )
    embedder = SentenceTransformerEmbedder(files.folder, dimensions=model.dimensions)
    began = time.monotonic()
    shop.fill_v1(
        texts,
        lambda batch: embedder.embed(batch).vectors,
        lambda done: listener.progress(Progress(done, total, 0, time.monotonic() - began)),
    )


def _say_what_to_try() -> None:
    ingest = terminal.program()
    tries = [
        (f"{ingest} status", "what is done, and what to run next"),
        (f'{ingest} search "a gift for a gardener"', "search the new vectors"),
        (f"{ingest} up", "the same in Dagster's UI"),
        (f'eval "$({ingest} env)"', "then psql and dagster work by hand:"),
        ("psql \"$DATABASE_URL\" -c 'SELECT count(*) FROM product_embeddings_v2'", ""),
    ]
    terminal.say()
    terminal.say("To try next", style="bold")
    for line in terminal.columns(tries):
        terminal.say(f"  {line}")

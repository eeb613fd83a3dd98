"""The five checks before a run, as assets with a blocking check each.

The first four look at different things and stand side by side, so that all of them speak even if
one says no. The canary, which writes, comes after all four. What a verdict means is decided in
`preflight`; here facts are gathered and verdicts recorded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import dagster as dg
from pydantic import Field

from ingestion_pipeline import preflight
from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import database_facts, disk_facts
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import (
    DatabaseUnavailableError,
    IngestionError,
    LeaseLostError,
    OutOfMemoryError,
    RangeFailedError,
    TooManyFailuresError,
    redacted,
)
from ingestion_pipeline.memory import free_memory_bytes
from ingestion_pipeline.orchestration.embedding_assets import (
    OWNERS,
    product_embeddings,
    products,
)
from ingestion_pipeline.orchestration.listener import Recorder
from ingestion_pipeline.orchestration.models import Models, probe_spend
from ingestion_pipeline.orchestration.range_work import work_on
from ingestion_pipeline.orchestration.resources import ShopAccess
from ingestion_pipeline.orchestration.runs import invocation_of, told_to_dagster
from ingestion_pipeline.orchestration.work_left import work_left
from ingestion_pipeline.preflight import CanaryFacts, EmbeddingFacts, Found
from ingestion_pipeline.verdict import Verdict, failed_to_look
from ingestion_pipeline.verification.searchable import search_for_own_vectors
from ingestion_pipeline.work import RunIdentity

CANARY_PRODUCTS = 5

VERDICT = "verdict"
"""The name of the check on each of the five."""

_GROUP = "preflight"
_FIRST = {"dagster/priority": "1"}


Verdicts: TypeAlias = Iterator[dg.MaterializeResult[None]]
"""One, in fact: Dagster takes `MaterializeResult[...]` itself for the type of a value."""


class CanaryConfig(dg.Config):
    """How much of the catalogue goes ahead of the rest."""

    products: int = Field(
        default=CANARY_PRODUCTS,
        ge=1,
        description="The first so many products go through the whole path. 5 is safe: seconds.",
    )


def _blocking(asset: str) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            VERDICT,
            asset=asset,
            blocking=True,
            description="Every reason why a run may not begin. A failure stops what comes after.",
        )
    ]


def _recorded(
    name: str,
    look: Callable[[], Verdict],
    context: dg.AssetExecutionContext,
    recorder: Recorder,
) -> dg.MaterializeResult[None]:
    """Look, and record the verdict: facts on the asset, reasons on its check.

    A check that cannot look says so, and blocks; only then does the whole preflight speak.
    """
    with told_to_dagster(context):
        try:
            verdict = look()
        except IngestionError as error:
            verdict = failed_to_look(name, str(error))
        except Exception as error:  # a crash must not read as anything but a "no"
            context.log.exception("%s crashed", name)
            verdict = failed_to_look(name, redacted(f"{type(error).__name__}: {error}"))
    recorder.verdict(verdict)
    context.log.info("\n".join(verdict.lines()))
    result = dg.AssetCheckResult(
        check_name=VERDICT,
        passed=verdict.passed,
        severity=(dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN),
        description="\n".join(str(reason) for reason in verdict.reasons) or verdict.summary,
        metadata={
            "status": verdict.status,
            "reasons": dg.MetadataValue.json([str(reason) for reason in verdict.reasons]),
        },
    )
    facts = {name: _metadata(value) for name, value in verdict.facts.items()}
    return dg.MaterializeResult(
        metadata={"summary": verdict.summary, **facts}, check_results=[result]
    )


def _metadata(value: object) -> dg.MetadataValue:
    match value:
        case bool():
            return dg.MetadataValue.bool(value)
        case int():
            return dg.MetadataValue.int(value)
        case float():
            return dg.MetadataValue.float(value)
        case str():
            return dg.MetadataValue.text(value)
        case None:
            return dg.MetadataValue.null()
        case _:
            return dg.MetadataValue.json(value)  # type: ignore[arg-type]  # verdicts hold JSON


@contextmanager
def _prepared(shop: ShopAccess) -> Iterator[Shop]:
    """The shop, where `database_connection` has found it fit and prepared it."""
    with shop.open() as opened:
        if not opened.is_prepared():
            raise DatabaseUnavailableError(
                "its tables are not prepared, which database_connection does once it passes."
            )
        yield opened


@dg.asset(
    deps=[products, product_embeddings],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("database_connection"),
    op_tags=_FIRST,
)
def database_connection(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> Verdicts:
    """Whether the server is there and fit.

    Primary or replica, versions of PostgreSQL and pgvector, privileges, tables, columns and types,
    and the mapping of the shop's schema to aspect texts. Creates what is missing of v2 and the
    bookkeeping once it passes.
    """

    def look() -> Verdict:
        verdict = preflight.database_connection(database_facts(shop.settings), shop.settings)
        if not verdict.blocking:
            with shop.open() as opened:
                opened.prepare()
        return verdict

    yield _recorded("database_connection", look, context, recorder)


@dg.asset(
    group_name=_GROUP,
    kinds={"huggingface"},
    owners=OWNERS,
    check_specs=_blocking("embedding_quota"),
)
def embedding_quota(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    models: dg.ResourceParam[Models],
    recorder: dg.ResourceParam[Recorder],
) -> Verdicts:
    """Whether there is something to embed with.

    For local models: files here and as pinned, and memory enough to run them. For an API: one text
    is asked for, which tells whether key and model are right, the true length of its vectors, and
    what is left of the quota.
    """

    def look() -> Verdict:
        facts = EmbeddingFacts(
            models=models.facts(shop.settings),
            free_memory_bytes=free_memory_bytes(),
            services=models.services(shop.settings),
        )
        shop.unrecorded += [probe_spend(shop.settings, it) for it in facts.services if it.tokens]
        return preflight.embedding_quota(facts, shop.settings)

    yield _recorded("embedding_quota", look, context, recorder)


@dg.asset(
    deps=[products],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("product_count"),
)
def product_count(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> Verdicts:
    """How much there is to do.

    Products in all, done, stale by aspect and why, distinct texts still to embed, and texts that
    are empty.
    """

    def look() -> Verdict:
        with _prepared(shop) as opened:
            return preflight.product_count(shop.counts(opened), opened.settings)

    yield _recorded("product_count", look, context, recorder)


@dg.asset(
    deps=[products],
    group_name=_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    check_specs=_blocking("disk_space"),
)
def disk_space(
    context: dg.AssetExecutionContext,
    shop: dg.ResourceParam[ShopAccess],
    recorder: dg.ResourceParam[Recorder],
) -> Verdicts:
    """Whether the vectors fit on the disk.

    Bytes that the rows, indexes and write-ahead log will take, against what is free where the
    server's data lies. What cannot be known is said to be unknown.
    """

    def look() -> Verdict:
        with _prepared(shop) as opened:
            facts = disk_facts(opened.connection.live, opened.settings)
            return preflight.disk_space(facts, shop.counts(opened), opened.settings)

    yield _recorded("disk_space", look, context, recorder)


@dg.asset(
    deps=[database_connection, embedding_quota, product_count, disk_space],
    group_name=_GROUP,
    kinds={"postgres", "huggingface"},
    owners=OWNERS,
    check_specs=_blocking("canary"),
)
def canary(
    context: dg.AssetExecutionContext,
    config: CanaryConfig,
    shop: dg.ResourceParam[ShopAccess],
    models: dg.ResourceParam[Models],
    recorder: dg.ResourceParam[Recorder],
) -> Verdicts:
    """The first products, taken through the whole path, search included.

    Their rate tells how long the rest will take. It writes their vectors, so it runs only where all
    else passes.
    """

    def look() -> Verdict:
        with shop.open() as opened:
            for spend in shop.unrecorded:
                opened.embeddings.record(_identity(context.run, "preflight"), spend)
            shop.unrecorded.clear()
            try:
                facts = _canary_facts(opened, models, context, recorder, config.products)
            except LeaseLostError as held:
                return preflight.canary_held(str(held))
            except (OutOfMemoryError, RangeFailedError, TooManyFailuresError) as stopped:
                return preflight.canary_stopped(str(stopped))
        return preflight.canary(facts)

    yield _recorded("canary", look, context, recorder)


def _identity(run: dg.DagsterRun, range_key: str) -> RunIdentity:
    return RunIdentity(run.run_id, invocation_of(run), range_key)


def _canary_facts(
    shop: Shop,
    models: Models,
    context: dg.AssetExecutionContext,
    recorder: Recorder,
    products: int,
) -> CanaryFacts:
    loaded = models.of(shop.settings, recorder.line)
    range_ = shop.catalogue.first_products(products)
    needed = shop.catalogue.texts_to_embed(shop.settings.fingerprints, range_)
    for model in loaded.values():
        if needed.get(model.fingerprint):
            # Loads the model now: its seconds say nothing of the rate.
            model.embedder.count_tokens(["canary"])
    [end] = work_on([range_], shop=shop, models=loaded, run=context.run, say=recorder.line)
    if end.left is not None:
        raise end.left
    result = end.result
    searches = {
        aspect: search_for_own_vectors(shop, aspect, range_, sample=products) for aspect in Aspect
    }
    return CanaryFacts(
        products=shop.catalogue.count(range_),
        embedded=result.embedded,
        reused=result.reused,
        empty=result.empty,
        failed=result.failed,
        seconds=result.seconds,
        found={
            aspect: Found(
                looked=len(search.neighbours),
                found=search.found,
                index=search.index,
                missed=tuple(it.product_id for it in search.neighbours if not it.found),
            )
            for aspect, search in searches.items()
        },
        left=work_left(shop),
    )

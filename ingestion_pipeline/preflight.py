"""May a run begin? Facts in, verdict with every reason out.

Everything here is a pure decision: no database, no model, no clock. The facts about the database
are gathered by `database.inspection`; those about models and the canary are handed in by whoever
runs the check. Judging the database itself is long enough for a module of its own,
`preflight_database`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import CountFacts, DiskFacts
from ingestion_pipeline.disk import readable
from ingestion_pipeline.preflight_database import database_connection
from ingestion_pipeline.preflight_services import (
    Estimate,
    ServiceFacts,
    Work,
    as_facts,
    described,
    estimate,
    judge,
)
from ingestion_pipeline.progress import dollars, duration
from ingestion_pipeline.ranges import ProductId
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.staleness import causes, in_words
from ingestion_pipeline.verdict import JSON, Reason, Reasons, Verdict, failed_to_look

__all__ = [
    "CanaryFacts",
    "EmbeddingFacts",
    "Found",
    "ModelFacts",
    "Reason",
    "Verdict",
    "canary",
    "canary_held",
    "canary_stopped",
    "database_connection",
    "disk_bytes_needed",
    "disk_space",
    "embedding_quota",
    "failed_to_look",
    "hnsw_bytes",
    "memory_needed",
    "product_count",
]

MOST_RANGES = 25_000
"""Partition keys up to which Dagster's pages and backfills stay quick."""

# Measured on PostgreSQL 18.4 and pgvector 0.8.5 with vectors of 768, 768 and 384 numbers.
TABLE_BYTES_PER_NUMBER = 9_939 / (768 + 768 + 384)  # heap and TOAST; a number is 4 bytes of it
KEY_BYTES = 23
LEDGER_BYTES = 360  # an aspect's row in the ledger and its two indexes; 300 with integer ids
WAL_FACTOR = 4  # a bulk load logs 0.9 times what it writes, updates under HNSW indexes 4 times
_PAGE_BYTES = 8_152
_HNSW_LINK_BYTES = 250  # an element's neighbours, with m = 16
MOST_EMPTIED = 0.5
"""A run that empties more than this share of an aspect's vectors was not meant: a mapping broke."""

SCARCE_SHARE = 0.9
"""Needing more than this share of what is free earns a warning: others write to that disk, too."""

# Measured with both default models on the CPU: 485 MB after the imports, 1,142 MB at the peak.
LIBRARY_BYTES = 500_000_000
WEIGHTS_FACTOR = 1.25
BYTES_PER_TOKEN = 60_000


@dataclass(frozen=True)
class ModelFacts:
    """A local model: where its files are, and what is wrong with them.

    `source` is None where they are not on this machine; `pinned` says that their checksums are
    known; `problems` has a sentence for each file that is not as pinned.
    """

    model: str
    aspects: tuple[Aspect, ...]
    source: str | None
    pinned: bool
    bytes: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbeddingFacts:
    """What there is to embed with: models on this machine, and services elsewhere."""

    models: tuple[ModelFacts, ...]
    free_memory_bytes: int | None
    services: tuple[ServiceFacts, ...] = ()


def embedding_quota(facts: EmbeddingFacts, settings: Settings) -> Verdict:
    """Whether files are there and sound, memory suffices, and services are ready to serve."""
    reasons = Reasons("embedding_quota")
    for service in facts.services:
        judge(service, reasons, needs_price=settings.budget.dollars is not None)
    for model in facts.models:
        aspects = " and ".join(model.aspects)
        if model.source is None:
            reasons.error(
                f"The files of {model.model} ({aspects}) are not on this machine.",
                "`ingest models --fetch` gets them.",
            )
        for problem in model.problems:
            reasons.error(problem, "`ingest models --fetch` gets sound files.")
        if model.source is not None and not model.pinned:
            reasons.warning(
                f"No checksums are known for {model.model} ({aspects}), so nobody can vouch for "
                f"{model.source}.",
                "Set its revision, and make sure that you trust the source.",
            )
    weights = sum(model.bytes for model in facts.models)
    needed = memory_needed(weights, settings.work.tokens_per_batch) if facts.models else 0
    free = facts.free_memory_bytes
    if free is None:
        reasons.unknown(
            "How much memory is free is not known.", f"About {readable(needed)} are needed."
        )
    elif needed > free:
        reasons.error(
            f"The models need about {readable(needed)} of memory, and {readable(free)} are free.",
            "Free some, or lower work.tokens_per_batch.",
        )
    return reasons.verdict(
        {
            "models": {
                model.model: {
                    "aspects": [aspect.value for aspect in model.aspects],
                    "source": model.source,
                    "verified": model.pinned and model.source is not None and not model.problems,
                    "bytes": model.bytes,
                }
                for model in facts.models
            },
            "services": {service.model: as_facts(service) for service in facts.services},
            "memory_needed_bytes": needed,
            "memory_free_bytes": free,
        },
        _embedding_summary(facts, needed),
    )


def _embedding_summary(facts: EmbeddingFacts, needed: int) -> str:
    local = f"{len(facts.models)} local models; about {readable(needed)} of memory needed"
    parts = [local] if facts.models else []
    return "; ".join([*parts, *(described(service) for service in facts.services)])


def memory_needed(weights_bytes: int, tokens_per_batch: int) -> int:
    """Bytes of memory at the peak: libraries, weights, and a batch on its way through a model."""
    batch = BYTES_PER_TOKEN * tokens_per_batch
    return round(LIBRARY_BYTES + WEIGHTS_FACTOR * weights_bytes + batch)


def product_count(facts: CountFacts, settings: Settings) -> Verdict:
    """Whether there is a catalogue, what of it is done, and what is left."""
    reasons = Reasons("product_count")
    name, per_range = settings.catalogue.products, settings.ranges.products_per_range
    texts = sum(facts.texts_to_embed.values())
    with_text = any(facts.products > empty for empty in facts.empty_texts.values())
    if not facts.products:
        reasons.error(
            f"{name} is empty.",
            "Bring a catalogue in with `ingest load FILE`, or set catalogue.products.",
        )
    elif not with_text:
        reasons.warning(
            f"The mapping gives no product of {name} any text: there is nothing to embed.",
            "Edit sql/product_texts.sql, and try it in psql.",
        )
    for aspect, emptied in facts.emptied.items():
        committed = facts.committed[aspect]
        if emptied > committed * MOST_EMPTIED:
            reasons.error(
                f"A run would remove {emptied:,} of {committed:,} {aspect} vectors: the mapping "
                "gives their products no text any more.",
                f"Mend the mapping. If it is meant, first remove the rows of the aspect {aspect} "
                "from ingestion.embedding_ledger.",
            )
    ranges = max(facts.ranges, math.ceil(facts.products / per_range))
    if ranges > MOST_RANGES:
        fitting = math.ceil(facts.products / (MOST_RANGES * SCARCE_SHARE))
        reasons.error(
            f"The catalogue makes {ranges:,} ranges, and Dagster stays quick up to "
            f"{MOST_RANGES:,} partitions.",
            f"Set ranges.products_per_range to {fitting:,} or more.",
        )
    if facts.failed_products:
        reasons.warning(
            f"{facts.failed_products:,} products have failed before and are left alone.",
            "`ingest failures` lists them; `ingest failures --retry` tries them again.",
        )
    states: dict[str, dict[str, int]] = {aspect.value: {} for aspect in Aspect}
    for counted in facts.aspects:
        states[counted.aspect.value][counted.state] = counted.aspects
    stale = {
        aspect.value: {
            counted.state: counted.aspects
            for counted in facts.aspects
            if counted.aspect is aspect and counted.stale
        }
        for aspect in Aspect
    }
    done = facts.products - facts.stale_products
    return reasons.verdict(
        {
            "products": facts.products,
            "done": done,
            "stale": facts.stale_products,
            "failed": facts.failed_products,
            "aspects": states,
            "stale_aspects": stale,
            "stale_because": causes(facts, settings),
            "texts_to_embed": texts,
            "texts_to_embed_by_model": _by_model(facts.texts_to_embed, settings),
            "empty_texts": {aspect.value: facts.empty_texts.get(aspect, 0) for aspect in Aspect},
            "ranges": ranges,
        },
        f"{facts.products:,} products, {done:,} done, {facts.stale_products:,} stale; "
        f"{texts:,} distinct texts to embed",
        in_words(facts, settings),
    )


def _by_model(texts: Mapping[str, int], settings: Settings) -> dict[str, int]:
    models = {settings.fingerprint(aspect): settings.aspects[aspect].model for aspect in Aspect}
    by_model: dict[str, int] = {}
    for fingerprint, count in texts.items():
        model = models.get(fingerprint, fingerprint)
        by_model[model] = by_model.get(model, 0) + count
    return by_model


def disk_space(facts: DiskFacts, counts: CountFacts, settings: Settings) -> Verdict:
    """Whether what is still to be written fits where the server's data lies."""
    reasons = Reasons("disk_space")
    dimensions = {aspect: settings.aspects[aspect].dimensions for aspect in Aspect}
    parts = disk_bytes_needed(
        to_write=counts.stale_products,
        products=counts.products,
        dimensions=dimensions,
        indexed=facts.indexed,
        max_wal_bytes=None if facts.keeps_wal_for_replicas else facts.max_wal_bytes,
    )
    needed, free = sum(parts.values()), facts.free_bytes
    if free is None:
        reasons.unknown(
            f"About {readable(needed)} are needed where the server's data lies, and how much is "
            f"free there cannot be known: {facts.why_unknown}.",
            "Ask whoever runs the server, and set disk.free_bytes in ingestion.toml.",
        )
    elif needed > free:
        reasons.error(
            f"About {readable(needed)} are needed where the server's data lies, and "
            f"{readable(free)} are free.",
            f"Free at least {readable(needed - free)}, or give the server a larger disk.",
        )
    elif needed > SCARCE_SHARE * free:
        reasons.warning(
            f"About {readable(needed)} of the {readable(free)} that are free will be used.",
            "Free some space: a full disk stops the shop's own writes, too.",
        )
    places: dict[str, JSON] = dict(facts.places)
    summary = f"about {readable(needed)} needed"
    return reasons.verdict(
        {"bytes_needed": needed, **parts, "bytes_free": free, "places": places},
        summary + (f", {readable(free)} free" if free is not None else ", free space unknown"),
    )


def disk_bytes_needed(
    *,
    to_write: int,
    products: int,
    dimensions: Mapping[Aspect, int],
    indexed: frozenset[Aspect],
    max_wal_bytes: int | None,
) -> dict[str, int]:
    """Bytes by purpose: `to_write` rows of v2, their ledger, the indexes, and the write-ahead log.

    An index that is not there yet will hold all `products`. A rewritten row counts in full, since
    its old version stays until vacuum. The log is recycled at about `max_wal_size`; None stands
    for a log that is kept for as long as a replica wants it.
    """
    numbers = sum(dimensions.values())
    table = math.ceil(to_write * (TABLE_BYTES_PER_NUMBER * numbers + KEY_BYTES))
    ledger = to_write * LEDGER_BYTES * len(dimensions)
    indexes = sum(
        (to_write if aspect in indexed else products) * hnsw_bytes(size)
        for aspect, size in dimensions.items()
    )
    log = WAL_FACTOR * (table + ledger + indexes)
    return {
        "table_bytes": table,
        "ledger_bytes": ledger,
        "index_bytes": indexes,
        "wal_bytes": log if max_wal_bytes is None else min(log, max_wal_bytes),
    }


def hnsw_bytes(dimensions: int) -> int:
    """Bytes of an HNSW index for each vector: as many whole ones as go on a page of 8 kB."""
    return math.ceil(8_192 / max(1, _PAGE_BYTES // (4 * dimensions + _HNSW_LINK_BYTES)))


@dataclass(frozen=True)
class Found:
    """Of `looked` products, how many a search by their own vector returned.

    `index` is the HNSW index that it went through; None where v2 was read whole. `missed` are the
    ids of the products that were not found.
    """

    looked: int
    found: int
    index: str | None = None
    missed: tuple[ProductId, ...] = ()


@dataclass(frozen=True)
class CanaryFacts:
    """What became of the first products, and what is left after them.

    `embedded`, `reused`, `empty` and `failed` count aspects; `left` is by fingerprint.
    """

    products: int
    embedded: int
    reused: int
    empty: int
    failed: int
    seconds: float
    found: Mapping[Aspect, Found]
    left: Mapping[str, Work]


def canary(facts: CanaryFacts) -> Verdict:
    """Whether the first products came through and are found, and how long the rest will take."""
    reasons = Reasons("canary")
    if facts.failed:
        message = f"{facts.failed:,} aspects of the first {facts.products:,} products failed."
        remedy = "`ingest failures` says why."
        # A few that fail again, where nothing else was stale, say nothing against the model.
        if facts.embedded or facts.reused or facts.failed < facts.products:
            reasons.warning(message, remedy)
        else:
            reasons.error(message, remedy)
    for aspect, found in facts.found.items():
        if found.found == found.looked:
            continue
        message = (
            f"A search by {aspect} found {found.found} of the {found.looked} products by their own "
            f"vector{_not(found.missed)}."
        )
        if found.index:
            # The vectors may be right all the same, and a run must not wait for an index.
            reasons.warning(message, _drop_index(found.index))
        else:
            reasons.error(
                message, f"Set {aspect.column} of those not found to NULL, and try again."
            )
    if not any(found.looked for found in facts.found.values()):
        reasons.unknown(
            f"None of the first {facts.products:,} products has a vector, so no search was tried.",
            "Check the texts that sql/product_texts.sql gives them.",
        )
    left = sum(work.texts for work in facts.left.values())
    estimated = estimate(facts.left)
    if estimated.seconds is None:
        reasons.unknown(
            f"How long the other {left:,} texts take is not known: nothing was embedded here, or "
            "in an earlier run, to measure by.",
            "`ingest --limit 50` embeds more products first.",
        )
    return reasons.verdict(
        {
            "products": facts.products,
            "embedded": facts.embedded,
            "reused": facts.reused,
            "empty": facts.empty,
            "failed": facts.failed,
            "seconds": facts.seconds,
            "found": {
                aspect.value: {"looked": found.looked, "found": found.found}
                for aspect, found in facts.found.items()
            },
            "texts_left": left,
            "estimated_seconds": estimated.seconds,
            "estimated_tokens": estimated.tokens,
            "estimated_dollars": None if estimated.cost is None else str(estimated.cost),
            "bound_by": estimated.bound_by,
        },
        _canary_summary(facts, left, estimated),
    )


def _not(missed: Sequence[ProductId]) -> str:
    return f", and not {', '.join(str(id_) for id_ in missed)}" if missed else ""


def canary_stopped(reason: str) -> Verdict:
    """The first products met something that no other product would fare better with."""
    reasons = Reasons("canary")
    reasons.error(reason, "")
    return reasons.verdict({}, "the first products did not come through")


def canary_held(held: str) -> Verdict:
    """The first products are in another run's hands, which takes them the same way just now."""
    reasons = Reasons("canary")
    reasons.unknown(
        f"The first products were not tried: {held}",
        "That run tries them now; `ingest status` shows how it goes.",
    )
    return reasons.verdict({"held": held}, "left to the run that works on the first products")


def _drop_index(name: str) -> str:
    """What to do about an index that loses vectors."""
    return f"DROP INDEX CONCURRENTLY {name}; and `ingest` builds a better one."


def _canary_summary(facts: CanaryFacts, left: int, estimated: Estimate) -> str:
    came = (
        f"{facts.products:,} products in {duration(facts.seconds)}: "
        f"{facts.embedded:,} embedded, {facts.reused:,} reused"
    )
    if not left:
        return f"{came}; nothing is left to embed"
    if estimated.seconds is None:
        return f"{came}; the other {left:,} texts take an unknown time"
    taken = f"{came}; the other {left:,} texts take about {duration(estimated.seconds)}"
    if estimated.cost is None:
        return taken
    return (
        f"{taken}, bound by {estimated.bound_by}, and {dollars(estimated.cost)} for about "
        f"{estimated.tokens:,} tokens"
    )

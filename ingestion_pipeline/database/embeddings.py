"""What this project writes: v2, the ledger, failed products, spend, leases and ranges.

A vector, its ledger row and its spend are written in one transaction, under a lease that is
checked in it and against the text as it is then. Everything else here is bookkeeping around that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
from psycopg import sql

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import Catalogue, bounds, sql_ids
from ingestion_pipeline.database.connection import Row, database_errors
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.database.session import Session
from ingestion_pipeline.errors import ConnectionLostError, LeaseLostError
from ingestion_pipeline.ranges import EVERYTHING, IdType, ProductId, ProductIdRange, key_of
from ingestion_pipeline.work import (
    AspectResult,
    KnownVector,
    Lease,
    Outcome,
    RunIdentity,
    Spend,
)

_SPLIT_ABOVE = 2
"""A range is cut once it has grown past this many times the wanted size."""

_SECONDS_BETWEEN_TRIES = 1.0

_COPY_TYPES = ("text", "bytea", "text", "text", "vector", "int4", "bool", "text")


@dataclass(frozen=True)
class RangePlan:
    """The ranges in the order of ids, and the keys that came and went with this plan."""

    ranges: list[tuple[str, ProductIdRange]]
    added: list[str]
    removed: list[str]


@dataclass(frozen=True)
class FailedProduct:
    """An aspect that could not be embedded; times in UTC."""

    product_id: ProductId
    name: str | None
    aspect: Aspect
    reason: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True)
class SpendSummary:
    """What one invocation took. `seconds` is time in models, added up over all workers."""

    invocation: str
    started_at: datetime
    finished_at: datetime
    requests: int
    texts: int
    embedded: int
    reused: int
    empty: int
    failed: int
    tokens: int
    cost: Decimal | None
    seconds: float


@dataclass(frozen=True)
class ModelRate:
    """What a model made of texts lately; no rate where no time was measured."""

    texts_per_second: float | None
    tokens_per_text: float


@dataclass(frozen=True)
class VectorIndex:
    """An HNSW index on cosine distance; not `valid` when its build was interrupted."""

    column: str
    name: str
    valid: bool
    bytes: int


class EmbeddingStore:
    """Writes one shop's vectors and bookkeeping."""

    def __init__(self, session: Session, queries: Queries, id_type: IdType) -> None:
        self._session = session
        self._queries = queries
        self._id_type = id_type

    # Leases

    def claim(self, range_: ProductIdRange, owner: RunIdentity, seconds: int) -> Lease:
        """Take the range for `owner`; `LeaseLostError` names who holds any id of it."""
        with database_errors(), self._session.transaction():
            self._execute("lock_leases")
            self._execute("delete_dead_leases", **bounds(range_))
            holders = self._execute("overlapping_leases", **bounds(range_)).fetchall()
            if holders:
                key, run_id, expires_at = holders[0]
                raise LeaseLostError(
                    f"Range {owner.range_key} is held by run {run_id} (as {key}) until "
                    f"{expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest. "
                    "It is free as soon as that run ends."
                )
            fence, expires_at = self._one(
                "claim_lease",
                range_key=owner.range_key,
                run_id=owner.run_id,
                seconds=seconds,
                **bounds(range_),
            )
        return Lease(owner, fence, seconds, expires_at)

    def renew(self, lease: Lease) -> None:
        """Keep the range for its seconds from now on; `LeaseLostError` if it is not ours."""
        with database_errors():
            self._renew(lease)

    def _renew(self, lease: Lease) -> None:
        renewed = self._execute(
            "renew_lease",
            range_key=lease.owner.range_key,
            fence=lease.fence,
            seconds=lease.seconds,
        ).fetchone()
        if not renewed:
            raise LeaseLostError(
                f"Range {lease.owner.range_key} has been taken over by another run, since "
                f"this one was silent for more than {lease.seconds} s."
            )

    def release(self, lease: Lease) -> None:
        """Give the range back. A connection that is gone has given it back already."""
        if not self._session.lost:
            # A session that has ended unnoticed has given it back, too.
            with suppress(ConnectionLostError), database_errors():
                self._execute("release_lease", range_key=lease.owner.range_key, fence=lease.fence)

    def release_all(self, run_id: str) -> None:
        """Give back all that a run holds, also what it never heard that it got."""
        with database_errors():
            self._execute("release_leases_of_run", run_id=run_id)

    # Vectors

    def known_vectors(
        self, texts: Collection[tuple[bytes, str]]
    ) -> dict[tuple[bytes, str], KnownVector]:
        """Vectors in v2 that stand for some of these (text digest, fingerprint) pairs."""
        if not texts:
            return {}
        digests, fingerprints = zip(*texts, strict=True)
        with database_errors():
            query = self._queries.compose("reusable_vectors")
            wanted = {"text_digests": list(digests), "fingerprints": list(fingerprints)}
            rows = self._session.execute(query, wanted, binary=True).fetchall()
        return {
            (bytes(digest), fingerprint): KnownVector(
                np.asarray(embedding.to_numpy(), dtype=np.float32), tokens, truncated
            )
            for digest, fingerprint, embedding, tokens, truncated in rows
        }

    def commit(
        self, lease: Lease, results: Sequence[AspectResult], *spends: Spend
    ) -> list[AspectResult]:
        """Write vectors, ledger, failures and the spend of some batches, all or nothing, and once.

        Returns the results that were written: those whose text is still the one in the catalogue.
        Raises `LeaseLostError`, and writes nothing, if the lease is no longer ours. When the reply
        to a commit was lost, the same commit again finds its spends there and changes nothing.
        """
        owner = lease.owner
        with database_errors():
            self._execute("create_incoming")
            with self._session.transaction():
                self._renew(lease)
                self._copy_incoming(results)
                ids = {result.stale.product_id for result in results}
                outdated = self._execute("delete_outdated_incoming", product_ids=sql_ids(list(ids)))
                dropped = set(outdated.fetchall())
                written = [
                    result
                    for result in results
                    if (result.stale.product_id, result.stale.aspect.value) not in dropped
                ]
                if self._record_spends(owner, written, spends):
                    self._write_incoming(written, owner)
        return written

    def record(self, owner: RunIdentity, spend: Spend) -> None:
        """Write down, once, what was spent where there is nothing to commit."""
        with database_errors():
            self._record_spends(owner, [], [spend])

    def _write_incoming(self, results: Sequence[AspectResult], owner: RunIdentity) -> None:
        for aspect in {result.stale.aspect for result in results}:
            column = sql.Identifier(aspect.column)
            query = self._queries.compose("upsert_vectors", column=column)
            self._session.execute(query, {"aspect": aspect.value})
        self._execute("upsert_ledger", run_id=owner.run_id)
        self._execute("upsert_failed_products")
        self._execute("delete_mended_products")

    def _copy_incoming(self, results: Sequence[AspectResult]) -> None:
        cursor = self._session.cursor()
        with cursor.copy(self._queries.compose("copy_incoming")) as copy:
            copy.set_types([_COPY_ID_TYPES[self._id_type], *_COPY_TYPES])
            for result in results:
                stale, known = result.stale, result.known
                copy.write_row(
                    (
                        stale.product_id,
                        stale.aspect.value,
                        stale.digest,
                        stale.fingerprint,
                        result.outcome.value,
                        known.vector if known else None,
                        known.tokens if known else 0,
                        known.truncated if known else False,
                        result.reason,
                    )
                )

    def _record_spends(
        self, owner: RunIdentity, written: Sequence[AspectResult], spends: Sequence[Spend]
    ) -> bool:
        """Whether they were not on record yet.

        What was written stands with the first batch of its model, or of no model.
        """
        uncounted: dict[str, Counter[Outcome]] = {}
        for result in written:
            uncounted.setdefault(result.stale.fingerprint, Counter())[result.outcome] += 1
        is_new = False
        for spend in spends:
            is_last = spend is spends[-1]
            mine = list(uncounted) if is_last or not spend.fingerprint else [spend.fingerprint]
            counts = sum((uncounted.pop(it, Counter()) for it in mine), Counter[Outcome]())
            inserted = self._execute(
                "insert_spend",
                batch=spend.batch,
                invocation=owner.invocation,
                run_id=owner.run_id,
                range_key=owner.range_key,
                fingerprint=spend.fingerprint,
                requests=spend.requests,
                texts=spend.texts,
                tokens=spend.tokens,
                cost=spend.cost,
                price_version=spend.price_version,
                seconds=spend.seconds,
                **{outcome.value: counts[outcome] for outcome in Outcome},
            )
            is_new = is_new or bool(inserted.rowcount)
        return is_new

    # Ranges

    def ranges(self) -> list[tuple[str, ProductIdRange]]:
        """The planned ranges with their keys, in the order of ids."""
        with database_errors():
            rows = self._execute("product_id_ranges").fetchall()
        return [(key, ProductIdRange(first, end)) for key, first, end in rows]

    def plan_ranges(self, products_per_range: int) -> RangePlan:
        """Cut the catalogue into ranges, or those that have grown too large into smaller ones.

        Ranges that exist keep their keys until they hold more than twice `products_per_range`.
        """
        catalogue = Catalogue(self._session, self._queries)
        with database_errors(), self._session.transaction():
            self._execute("lock_product_id_ranges")
            before = self.ranges()
            ranges = [range_ for _, range_ in before] or [EVERYTHING]
            sizes = catalogue.products_per_range(ranges)
            limit = products_per_range * (_SPLIT_ABOVE if before else 1)
            planned = [
                piece
                for range_, size in zip(ranges, sizes, strict=True)
                for piece in (
                    catalogue.divided(range_, products_per_range) if size > limit else [range_]
                )
            ]
            after = [(key_of(range_, self._id_type), range_) for range_ in planned]
            removed = [key for key, _ in before if key not in dict(after)]
            added = [key for key, _ in after if key not in dict(before)]
            for key in removed:
                self._execute("delete_product_id_range", key=key)
            for key in added:
                self._execute("insert_product_id_range", key=key, **bounds(dict(after)[key]))
        return RangePlan(after, added, removed)

    # Bookkeeping

    def failed_products(self) -> list[FailedProduct]:
        """Every aspect that could not be embedded, by reason and then by id."""
        with database_errors():
            rows = self._execute("failed_products").fetchall()
        return [
            FailedProduct(product_id, name, Aspect(aspect), *rest)
            for product_id, name, aspect, *rest in rows
        ]

    def failed_product_count(self) -> int:
        """Products with an aspect that failed and is not waiting to be tried again."""
        with database_errors():
            return int(self._one("failed_product_count")[0])

    def retry_failed(self) -> int:
        """Make every failed aspect stale again; returns how many."""
        with database_errors():
            updated: int = self._execute("retry_failed").rowcount
        return updated

    def spend(self, invocation: str | None = None) -> SpendSummary | None:
        """What an invocation, or the latest one, took; None if nothing was ever committed."""
        with database_errors():
            row = self._execute("spend_of_invocation", invocation=invocation).fetchone()
        return SpendSummary(*row) if row else None

    def products_of(self, invocation: str) -> int:
        """Products of which an invocation wrote some aspect, if no later one wrote it again."""
        with database_errors():
            return int(self._one("products_of_invocation", invocation=invocation)[0])

    def model_rates(self) -> dict[str, ModelRate]:
        """How the model of each fingerprint did lately."""
        with database_errors():
            rows = self._execute("embedding_rates").fetchall()
        return {
            fingerprint: ModelRate(texts / seconds if seconds > 0 else None, tokens / texts)
            for fingerprint, texts, tokens, seconds in rows
        }

    def spent(self, fingerprints: Collection[str]) -> tuple[int, Decimal | None]:
        """Tokens and US dollars, ever, on vectors of these fingerprints; None: nothing priced."""
        with database_errors():
            tokens, cost = self._one("spent", fingerprints=list(fingerprints))
        return tokens, cost

    def rate_limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Requests and tokens a minute that each endpoint was last heard to allow."""
        with database_errors():
            rows = self._execute("rate_limits").fetchall()
        return {endpoint: (requests, tokens) for endpoint, requests, tokens in rows}

    def delete_orphans(self) -> int:
        """Remove the vectors and bookkeeping of products that are gone; returns the vectors."""
        with database_errors(), self._session.transaction():
            vectors: int = self._execute("delete_orphan_vectors").rowcount
            self._execute("delete_orphan_ledger")
            self._execute("delete_orphan_failures")
        return vectors

    # Indexes

    def vector_indexes(self) -> list[VectorIndex]:
        """The HNSW indexes of v2 on cosine distance, valid or not."""
        table = self._queries.regclass("product_embeddings_v2")
        with database_errors():
            rows = self._execute("vector_indexes", v2_table=table).fetchall()
        return [VectorIndex(*row) for row in rows]

    def create_vector_indexes(
        self,
        report: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> list[str]:
        """Build the HNSW index of each column that has none that works; returns their names.

        An index that an interrupted build left invalid is dropped and built again. Waits while
        another session builds them.
        """
        told = False
        with database_errors():
            # By asking again and again: a session that waits in the server for a lock is what a
            # concurrent build waits for, too.
            while not self._one("try_lock_indexes")[0]:
                if not told:
                    report("waiting for another run that builds the indexes")
                told = True
                sleep(_SECONDS_BETWEEN_TRIES)
            try:
                self._execute("allow_long_statements")
                return self._create_missing_indexes(report)
            finally:
                if not self._session.lost:
                    self._execute("unlock_indexes")

    def _create_missing_indexes(self, report: Callable[[str], None]) -> list[str]:
        existing = self.vector_indexes()
        table = self._queries.tables["product_embeddings_v2"]
        schema, _, plain_table = table.rpartition(".")
        created = []
        for aspect in Aspect:
            on_column = [index for index in existing if index.column == aspect.column]
            if any(index.valid for index in on_column):
                continue
            for index in on_column:
                where = (schema, index.name) if schema else (index.name,)
                self._run_composed("drop_vector_index", index=sql.Identifier(*where))
            name = f"{plain_table}_{aspect.value}_hnsw"
            report(f"building {name}")
            self._run_composed(
                "create_vector_index",
                index=sql.Identifier(name),
                column=sql.Identifier(aspect.column),
            )
            created.append(name)
        return created

    def bytes(self) -> tuple[int, int]:
        """Bytes of v2 with its TOAST, and of its indexes."""
        table = self._queries.regclass("product_embeddings_v2")
        with database_errors():
            table_bytes, index_bytes = self._one("v2_bytes", v2_table=table)
        return table_bytes, index_bytes

    def _run_composed(self, name: str, **literals: sql.Composable) -> None:
        with database_errors():
            self._session.execute(self._queries.compose(name, **literals), {})

    def _execute(self, name: str, **parameters: object) -> Any:
        return self._session.execute(self._queries.compose(name), parameters)

    def _one(self, name: str, **parameters: object) -> Row:
        row: Row = self._execute(name, **parameters).fetchone()
        return row


_COPY_ID_TYPES: Mapping[IdType, str] = {
    IdType.INTEGER: "int4",
    IdType.BIGINT: "int8",
    IdType.UUID: "uuid",
    IdType.TEXT: "text",
}

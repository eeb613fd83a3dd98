"""The checks of a finished (or half-finished) v2, in the order in which a person wants them.

Every check looks at the whole table, set-wise, and names what it found: the exact count, and the
first ten products. Its severity says what a bad result means: `error`, a search on v2 would give
wrong or missing products; `warning`, somebody should know, and v2 may be used. What cannot be
looked at is `unknown`, never `pass`.

Asking the questions is the work of `sql/`; nothing here is known of Dagster or the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from psycopg.rows import dict_row

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.catalogue import bounds
from ingestion_pipeline.database.connection import database_errors
from ingestion_pipeline.database.shop import Shop
from ingestion_pipeline.errors import InputError, redacted
from ingestion_pipeline.ranges import EVERYTHING
from ingestion_pipeline.staleness import difference
from ingestion_pipeline.verification.searchable import OwnNeighbour, search_for_own_vectors

Status: TypeAlias = Literal["pass", "warn", "fail", "unknown"]
Severity: TypeAlias = Literal["error", "warning"]
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Row: TypeAlias = Mapping[str, Any]

SAMPLE = 10
"""Products named by a check that found something; the count beside them is exact."""

NOT_PREPARED = "Nothing has been ingested into this database yet. Run `ingest`."


@dataclass(frozen=True)
class CheckResult:
    """What a check found: how much is amiss, exactly, and the first ten products in `sample`."""

    name: str
    status: Status
    summary: str
    count: int = 0
    sample: tuple[str, ...] = ()
    facts: Mapping[str, JSON] = field(default_factory=dict)

    def as_dict(self) -> dict[str, JSON]:
        """The result as JSON takes it."""
        return {
            "name": self.name,
            "status": self.status,
            "summary": self.summary,
            "count": self.count,
            "sample": list(self.sample),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Check:
    """A check: what it asks, and how grave the answer is where it is not `pass`."""

    function: Callable[[Shop], CheckResult]
    description: str
    severity: Severity


def run_checks(shop: Shop, names: Iterable[str] | None = None) -> list[CheckResult]:
    """Run the named checks, or all, in the order of `CHECKS`; `InputError` for an unknown name.

    A check that raises gives `unknown` with the reason, and the others run all the same.
    """
    wanted = list(CHECKS) if names is None else list(names)
    for name in wanted:
        if name not in CHECKS:
            raise InputError(f"There is no check {name}. There are {', '.join(CHECKS)}.")
    return [_run(shop, name) for name in CHECKS if name in wanted]


def _run(shop: Shop, name: str) -> CheckResult:
    try:
        if not shop.is_prepared():
            return CheckResult(name, "unknown", NOT_PREPARED)
        return CHECKS[name].function(shop)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the caller is told it
        reason = redacted(str(error)) or type(error).__name__
        return CheckResult(name, "unknown", f"This could not be looked at: {reason}")


def v2_count(shop: Shop) -> CheckResult:
    """As many rows in v2 as there are products."""
    [row] = _rows(shop, "check_v2_count")
    v2, products = row["v2_total"], row["product_total"]
    facts: dict[str, JSON] = {"v2": v2, "products": products}
    if v2 == products:
        return CheckResult(
            "v2_count", "pass", f"{v2:,} rows for {products:,} products", 0, (), facts
        )
    wrong = "check_products_without_row" if v2 < products else "check_rows_without_product"
    return CheckResult(
        "v2_count",
        "fail",
        f"{v2:,} rows for {products:,} products: {abs(products - v2):,} too "
        + ("few. `ingest` adds them." if v2 < products else "many. `ingest` removes them."),
        abs(products - v2),
        _named(_rows(shop, wrong, sample=SAMPLE)),
        facts,
    )


def every_product_has_embeddings(shop: Shop) -> CheckResult:
    """No product without a row in v2, and no row in v2 without its product."""
    missing = _rows(shop, "check_products_without_row", sample=SAMPLE)
    orphans = _rows(shop, "check_rows_without_product", sample=SAMPLE)
    without_row, without_product = _total(missing), _total(orphans)
    facts: dict[str, JSON] = {
        "products_without_row": without_row,
        "rows_without_product": without_product,
    }
    name = "every_product_has_embeddings"
    if not without_row and not without_product:
        return CheckResult(name, "pass", "every product has its row in v2", 0, (), facts)
    found = []
    if without_row:
        found.append(_products(without_row, "has no row in v2", "have no row in v2"))
    if without_product:
        found.append(f"{without_product:,} rows in v2 have lost their product")
    return CheckResult(
        name,
        "fail",
        f"{' and '.join(found)}. `ingest` mends both.",
        without_row + without_product,
        (*_named(missing), *_named(orphans, "no such product"))[:SAMPLE],
        facts,
    )


def null_vectors(shop: Shop) -> CheckResult:
    """No vector missing but those of an empty text or a failed product, which are on record."""
    counts = _rows(shop, "check_null_vectors", **_states(shop))
    explained: dict[str, dict[str, int]] = {}
    unexplained: dict[str, int] = {}
    for row in counts:
        if row["reason"] is None:
            unexplained[row["aspect"]] = row["vectors"]
        else:
            explained.setdefault(row["aspect"], {})[row["reason"]] = row["vectors"]
    known = sum(sum(reasons.values()) for reasons in explained.values())
    count = sum(unexplained.values())
    facts: dict[str, JSON] = {"explained": explained, "unexplained": unexplained}
    if known:
        listed = _rows(
            shop, "check_null_vectors_sample", **_states(shop), explained=True, sample=SAMPLE
        )
        facts["explained_products"] = _total(listed)
        facts["explained_sample"] = list(_named(listed))
    apart = f"{known:,} have a reason on record" if known else "none is missing"
    if not count:
        summary = f"no vector is missing without a reason ({apart})"
        return CheckResult("null_vectors", "pass", summary, 0, (), facts)
    sample = _rows(
        shop, "check_null_vectors_sample", **_states(shop), explained=False, sample=SAMPLE
    )
    where = ", ".join(f"{vectors:,} {aspect}" for aspect, vectors in unexplained.items())
    return CheckResult(
        "null_vectors",
        "fail",
        f"{count:,} vectors are missing without a reason ({where}), in {_total(sample):,} "
        f"products; {known:,} others have one. `ingest` embeds what is missing.",
        count,
        _named(sample),
        facts,
    )


def dimensions(shop: Shop) -> CheckResult:
    """Every vector has as many numbers as the settings say."""
    expected = {aspect.value: shop.settings.aspects[aspect].dimensions for aspect in Aspect}
    rows = _rows(shop, "check_dimensions", **expected, sample=SAMPLE)
    five = _rows(shop, "verify_dimensions_of_five_products")
    facts: dict[str, JSON] = {
        "expected": expected,
        "five_products": [
            {
                "name": row["name"],
                **{aspect.value: row[f"{aspect.value}_dimensions"] for aspect in Aspect},
            }
            for row in five
        ],
    }
    wanted = ", ".join(f"{aspect} {size}" for aspect, size in expected.items())
    if not rows:
        return CheckResult("dimensions", "pass", f"every vector has {wanted}", 0, (), facts)
    return CheckResult(
        "dimensions",
        "fail",
        f"{_total(rows):,} products have vectors of another length than {wanted}. Set their "
        "vectors to NULL, and `ingest` makes new ones.",
        _total(rows),
        _named(rows),
        facts,
    )


def one_model_a_column(shop: Shop) -> CheckResult:
    """Every vector of a column is on record, as one of the model that the settings name for it."""
    name, settings = "one_model_a_column", shop.settings
    right = 0
    others: list[str] = []
    count = meant_to_be_null = 0
    by_column: dict[str, dict[str, int]] = {aspect.column: {} for aspect in Aspect}
    for row in _rows(shop, "check_vector_origins"):
        aspect, vectors = Aspect(row["aspect"]), row["vectors"]
        by_column[aspect.column][row["fingerprint"] or "not on record"] = vectors
        if row["fingerprint"] == settings.fingerprint(aspect):
            right += vectors
            continue
        count += vectors
        meant_to_be_null += row["meant_to_be_null"]
        if row["fingerprint"] is None:
            others.append(f"{vectors:,} {aspect} not on record")
        else:
            why = difference(row["parts"], {**settings.fingerprint_parts(aspect)})
            others.append(f"{vectors:,} {aspect} from before {why}")
    facts: dict[str, JSON] = {
        "vectors": by_column,
        "fingerprints": {aspect.column: settings.fingerprint(aspect) for aspect in Aspect},
    }
    if not count:
        summary = f"all {right:,} vectors are on record, each column's of one model"
        return CheckResult(name, "pass", summary, 0, (), facts)
    remedy = "`ingest` makes them anew." if count > meant_to_be_null else ""
    if meant_to_be_null:
        remedy += (
            f" {meant_to_be_null:,} stand where a text is empty or has failed: set them to NULL."
        )
    sample = _rows(shop, "check_vector_origins_sample", **_fingerprints(shop), sample=SAMPLE)
    return CheckResult(
        name,
        "fail",
        f"{count:,} vectors are not of their column's model, and cannot be compared with the "
        f"others: {'; '.join(others)}. {remedy.strip()}",
        count,
        _named(sample),
        facts,
    )


def searchable(shop: Shop) -> CheckResult:
    """A search by a product's own vector returns it, through the index where there is one."""
    zeros = _rows(shop, "check_zero_vectors", sample=SAMPLE)
    lost: list[tuple[Aspect, OwnNeighbour]] = []
    idle: list[str] = []
    looked = 0
    by_aspect: dict[str, JSON] = {}
    for aspect in Aspect:
        search = search_for_own_vectors(shop, aspect)
        looked += len(search.neighbours)
        lost += [(aspect, neighbour) for neighbour in search.neighbours if not neighbour.found]
        if search.index is not None and search.neighbours and not search.index_works:
            idle.append(search.index)
        by_aspect[aspect.value] = {
            "looked": len(search.neighbours),
            "found": search.found,
            "index": search.index,
            "index_works": search.index_works,
            "index_is_chosen": search.index_is_chosen,
        }
    facts: dict[str, JSON] = {"aspects": by_aspect, "zero_vectors": _total(zeros)}
    if not looked:
        return CheckResult("searchable", "unknown", "v2 has no vectors to search for", facts=facts)
    complaints = []
    if zeros:
        complaints.append(
            f"{_total(zeros):,} products have a zero vector, which no search returns (set it to "
            "NULL, and `ingest` makes a new one)"
        )
    if lost:
        complaints.append(
            f"{len(lost)} of {looked} searches by a product's own vector did not return it "
            "(drop the index with DROP INDEX CONCURRENTLY, and `ingest` builds a new one)"
        )
    if idle:
        complaints.append(f"the server cannot answer from {', '.join(idle)}")
    if not complaints:
        indexes = sum(1 for found in by_aspect.values() if _has_index(found))
        through = f"through {indexes} of {len(Aspect)} indexes" if indexes else "without an index"
        summary = f"{looked} of {looked} searches by a product's own vector found it, {through}"
        return CheckResult("searchable", "pass", summary, 0, (), facts)
    not_found = tuple(
        f"{neighbour.product_id} {neighbour.name}: not found by {aspect}"
        for aspect, neighbour in lost
    )
    products = {neighbour.product_id for _, neighbour in lost} | {
        row["product_id"] for row in zeros
    }
    return CheckResult(
        "searchable",
        "fail",
        "; ".join(complaints) + ".",
        max(len(products), _total(zeros)),
        (*_named(zeros), *not_found)[:SAMPLE],
        facts,
    )


def v1_against_v2(shop: Shop) -> CheckResult:
    """v2 has at least as many products as v1."""
    v1_table = shop.queries.regclass("product_embeddings")
    [there] = _rows(shop, "check_v1_exists", v1_table=v1_table)
    if not there["v1_exists"]:
        return CheckResult(
            "v1_against_v2",
            "unknown",
            f"There is no table {shop.settings.catalogue.v1} (v1) to compare v2 with. Set "
            "catalogue.v1 if it has another name.",
        )
    [row] = _rows(shop, "verify_v1_and_v2_counts")
    v1, v2 = row["v1_total"], row["v2_total"]
    facts: dict[str, JSON] = {"v1": v1, "v2": v2}
    if v2 >= v1:
        return CheckResult("v1_against_v2", "pass", f"v1 {v1:,} rows, v2 {v2:,} rows", 0, (), facts)
    return CheckResult(
        "v1_against_v2",
        "warn",
        f"v1 has {v1:,} rows and v2 {v2:,}: {v1 - v2:,} fewer. v1 may hold products that are gone "
        "since, or several rows a product; v2_count compares v2 with the catalogue.",
        v1 - v2,
        (),
        facts,
    )


def up_to_date(shop: Shop) -> CheckResult:
    """Every vector stands for today's text and the model of the settings."""
    rows = _rows(shop, "check_stale_products", **_states(shop), sample=SAMPLE)
    if not rows:
        return CheckResult(
            "up_to_date", "pass", "the ledger has today's text and model for each vector"
        )
    stale: dict[str, dict[str, int]] = {}
    for counted in shop.catalogue.aspect_counts(shop.settings.fingerprints):
        if counted.stale:
            stale.setdefault(counted.aspect.value, {})[counted.state] = counted.aspects
    return CheckResult(
        "up_to_date",
        "fail",
        f"{_products(_total(rows), 'is stale', 'are stale')}. `ingest` brings them up to date.",
        _total(rows),
        _named(rows),
        {"stale": stale},
    )


def failed_products(shop: Shop) -> CheckResult:
    """No product that could not be embedded, or no more than the settings let pass."""
    rows = _rows(shop, "check_failed_products", sample=SAMPLE)
    count, limit = _total(rows), shop.settings.work.max_failed_products
    facts: dict[str, JSON] = {"failed": count, "max_failed_products": limit}
    if not count:
        return CheckResult("failed_products", "pass", "no product has failed", 0, (), facts)
    over = count > limit
    return CheckResult(
        "failed_products",
        "fail" if over else "warn",
        f"{count:,} products have failed, "
        + ("more than" if over else "which is within")
        + f" the {limit:,} of work.max_failed_products. `ingest failures` says why.",
        count,
        _named(rows),
        facts,
    )


def _states(shop: Shop) -> dict[str, object]:
    """The parameters of a statement over the states of the whole catalogue."""
    return {**bounds(EVERYTHING), **_fingerprints(shop)}


def _fingerprints(shop: Shop) -> dict[str, object]:
    """What each column's vectors should be, as parameters."""
    fingerprints = shop.settings.fingerprints
    return {
        "aspects": [aspect.value for aspect in fingerprints],
        "fingerprints": list(fingerprints.values()),
    }


def _rows(shop: Shop, question: str, **parameters: object) -> list[dict[str, Any]]:
    statement = shop.queries.compose(question)
    with database_errors(), shop.connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, parameters).fetchall()


def _products(number: int, one: str, many: str) -> str:
    return f"1 product {one}" if number == 1 else f"{number:,} products {many}"


def _total(rows: Sequence[Row]) -> int:
    """The exact count that a capped sample brings along."""
    return int(rows[0]["total"]) if rows else 0


def _named(rows: Sequence[Row], note: str | None = None) -> tuple[str, ...]:
    """Each product as a person wants to read it: id, name, and what is the matter with it."""
    lines = []
    for row in rows:
        who = f"{row['product_id']} {row['name'] or ''}".strip()
        detail = row.get("detail") or note
        lines.append(f"{who}: {detail}" if detail else who)
    return tuple(lines)


def _has_index(found: JSON) -> bool:
    return isinstance(found, Mapping) and found["index"] is not None


CHECKS: Mapping[str, Check] = {
    "v2_count": Check(v2_count, "As many rows in v2 as there are products.", "error"),
    "every_product_has_embeddings": Check(
        every_product_has_embeddings,
        "No product without a row in v2, and no row in v2 without its product.",
        "error",
    ),
    "null_vectors": Check(
        null_vectors,
        "No vector is missing but those with a reason on record: an empty text, a failed product.",
        "error",
    ),
    "dimensions": Check(
        dimensions, "Every vector has as many numbers as the settings say.", "error"
    ),
    "one_model_a_column": Check(
        one_model_a_column,
        "Every vector of a column is on record as one of the model that the settings name for it.",
        "error",
    ),
    "searchable": Check(
        searchable,
        "A search by a product's own vector returns it, through the index where there is one.",
        "error",
    ),
    "up_to_date": Check(
        up_to_date, "Every vector stands for today's text and the model of the settings.", "error"
    ),
    # Some products that a model refuses are a fact of life; the settings say how many are too many.
    "failed_products": Check(
        failed_products, "No more failed products than the settings let pass.", "error"
    ),
    # v1 may hold what the catalogue has lost since, so a difference is a question, not a fault.
    "v1_against_v2": Check(v1_against_v2, "v2 has at least as many products as v1.", "warning"),
}
"""Every check by its name, in the order in which they run and are shown."""

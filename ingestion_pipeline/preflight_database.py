"""Is the shop's database fit for a run? Server, extension, rights, tables and mapping (pure).

One of the checks of `preflight`, in a module of its own for its size. The facts are gathered by
`database.inspection`. All that is wrong is said at once, with the statement that mends it, so that
a DBA is asked once and not five times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.database.inspection import (
    DatabaseFacts,
    MappedAspect,
    MappingFacts,
    SchemaFacts,
    ServerFacts,
    TableFacts,
    id_type_of,
)
from ingestion_pipeline.ranges import IdType
from ingestion_pipeline.settings import Settings
from ingestion_pipeline.verdict import JSON, Reasons, Verdict

OLDEST_POSTGRESQL = 14
"""The oldest release that distributions still carry together with a current pgvector."""

OLDEST_PGVECTOR = (0, 8, 4)
"""Before it, HNSW indexes can be corrupted by vacuum and by concurrent inserts."""

_SAMPLE = 10


def database_connection(facts: DatabaseFacts, settings: Settings) -> Verdict:
    """Whether the server is there and fit, with the tables, rights and mapping that a run needs."""
    reasons = Reasons("database_connection")
    if facts.server is None:
        reasons.error(facts.unreachable or "The database was not looked at.", "")
        return reasons.verdict({"reachable": False}, "no connection")
    _judge_server(reasons, facts.server)
    _judge_vector_extension(reasons, facts.server)
    _judge_bookkeeping(reasons, facts.server, facts.bookkeeping)
    _judge_products(reasons, facts, settings)
    _judge_v1(reasons, facts.v1, facts.server, settings)
    _judge_v2(reasons, facts, settings)
    if facts.mapping is not None:
        _judge_mapping(reasons, facts.mapping, _id_type(facts.products))
    return reasons.verdict(_connection_facts(facts), _connection_summary(facts.server))


def _connection_summary(server: ServerFacts) -> str:
    pgvector = f"pgvector {server.vector_version}" if server.vector_version else "no pgvector"
    where = f"database {server.database} as {server.role}"
    return f"PostgreSQL {server.version}, {pgvector}, {where}"


def _connection_facts(facts: DatabaseFacts) -> dict[str, JSON]:
    server, id_type = facts.server, _id_type(facts.products)
    if server is None:
        return {"reachable": False}
    return {
        "reachable": True,
        "postgresql": server.version,
        "pgvector": server.vector_version,
        "database": server.database,
        "role": server.role,
        "products": facts.products is not None,
        "product_id_type": id_type.value if id_type else None,
        "v1": facts.v1 is not None,
        "v2": facts.v2 is not None,
    }


def _judge_server(reasons: Reasons, server: ServerFacts) -> None:
    if server.version_number < OLDEST_POSTGRESQL * 10_000:
        reasons.error(
            f"The server is PostgreSQL {server.version}.",
            f"Upgrade it to PostgreSQL {OLDEST_POSTGRESQL} or newer.",
        )
    if server.is_replica:
        reasons.error(
            "The server is a replica, which takes no writes.",
            "Point DATABASE_URL at the primary (target_session_attrs=read-write finds it).",
        )
    elif server.is_read_only:
        reasons.error(
            "Sessions of this role are read-only (default_transaction_read_only is on).",
            f"ALTER ROLE {_quoted(server.role)} SET default_transaction_read_only = off; "
            "or look in postgresql.conf.",
        )
    if not server.may_create_temporary_table:
        reasons.error(
            f"{server.role} may not create temporary tables in {server.database}.",
            f"GRANT TEMPORARY ON DATABASE {_quoted(server.database)} TO {_quoted(server.role)};",
        )


def _judge_vector_extension(reasons: Reasons, server: ServerFacts) -> None:
    oldest = ".".join(map(str, OLDEST_PGVECTOR))
    major = server.version_number // 10_000
    package = (
        f"install pgvector {oldest} or newer on the server "
        f"(Debian: apt install postgresql-{major}-pgvector)"
    )
    package_is_fit = _version(server.vector_available) >= OLDEST_PGVECTOR
    if server.vector_version is None:
        create = f"in {server.database}, as a superuser or the database's owner: "
        create += "CREATE EXTENSION vector;"
        reasons.error(
            f"The extension vector (pgvector) is missing from database {server.database}.",
            f"A DBA runs, {create}" if package_is_fit else f"A DBA must {package}, then {create}",
        )
        return
    if _version(server.vector_version) < OLDEST_PGVECTOR:
        update = f"in {server.database}: ALTER EXTENSION vector UPDATE;"
        reasons.error(
            f"pgvector is {server.vector_version}; before {oldest} HNSW indexes can be corrupted.",
            f"A DBA runs, {update}" if package_is_fit else f"A DBA must {package}, then {update}",
        )
    if not server.vector_is_visible:
        schema = server.vector_schema or "its schema"
        path = f"{server.search_path}, {_quoted(schema)}"
        reasons.error(
            f"The extension vector is in schema {schema}, which {server.role} does not see.",
            f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {_quoted(server.role)}; "
            f"ALTER ROLE {_quoted(server.role)} SET search_path = {path};",
        )


def _judge_bookkeeping(
    reasons: Reasons, server: ServerFacts, bookkeeping: SchemaFacts | None
) -> None:
    role = _quoted(server.role)
    if bookkeeping is None:
        if not server.may_create_schema:
            reasons.error(
                f"{server.role} may not create the schema ingestion, where the bookkeeping lives.",
                f"CREATE SCHEMA ingestion AUTHORIZATION {role};",
            )
        return
    if not (bookkeeping.may_use and bookkeeping.may_create):
        reasons.error(
            f"{server.role} may not use and create tables in the schema ingestion.",
            f"GRANT USAGE, CREATE ON SCHEMA ingestion TO {role};",
        )
    if bookkeeping.closed_tables:
        reasons.error(
            f"{server.role} may not read and write ingestion.{bookkeeping.closed_tables[0]}"
            + _and_more(len(bookkeeping.closed_tables) - 1)
            + ", which another role made.",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ingestion TO {role};",
        )


def _judge_products(reasons: Reasons, facts: DatabaseFacts, settings: Settings) -> None:
    name, products, server = settings.catalogue.products, facts.products, facts.server
    if server is None:
        return
    if products is None:
        similar = ", ".join(facts.similar_tables)
        reasons.error(
            f"There is no table {name} in database {server.database} "
            f"(search_path: {server.search_path})."
            + (f" Did you mean {similar}?" if similar else ""),
            "Set catalogue.products in ingestion.toml, or bring a catalogue in with "
            "`ingest load FILE`.",
        )
        return
    if not _may_read(reasons, products, name, server):
        return
    id_column = products.columns.get("id")
    if id_column is None:
        reasons.error(
            f"{name} has no column id. It has {_listed(products.columns)}.",
            "Create a view that calls your key id, and name it in catalogue.products.",
        )
    elif id_column.id_type is None:
        reasons.error(
            f"{name}.id is {id_column.type}. Ids may be {', '.join(IdType)}.",
            "Create a view that casts it, and name it in catalogue.products.",
        )
    if "name" not in products.columns:
        reasons.error(
            f"{name} has no column name, by which reports and searches show a product. "
            f"It has {_listed(products.columns)}.",
            "Create a view that calls the title name, and name it in catalogue.products.",
        )
    if facts.ids is not None:
        _judge_ids(reasons, facts, name)
    if products.hides_rows:
        reasons.warning(
            f"Row-level security is on for {name}: {server.role} may not see every product.",
            f"ALTER ROLE {_quoted(server.role)} BYPASSRLS; or accept that hidden products stay "
            "without vectors.",
        )
    _judge_reference(reasons, products, facts.v2, name, server)


def _may_read(reasons: Reasons, table: TableFacts, name: str, server: ServerFacts) -> bool:
    role, readable = _quoted(server.role), True
    if not table.may_use_schema:
        reasons.error(
            f"{server.role} may not look into schema {table.schema}, where {name} is.",
            f"GRANT USAGE ON SCHEMA {_quoted(table.schema)} TO {role};",
        )
        readable = False
    if not any(column.may_select for column in table.columns.values()):
        reasons.error(
            f"{server.role} may not read {name}.",
            f"GRANT SELECT ON {_qualified(table)} TO {role};",
        )
        readable = False
    return readable


def _judge_ids(reasons: Reasons, facts: DatabaseFacts, name: str) -> None:
    ids = facts.ids
    if ids is None:
        return
    without, repeated = ids.rows - ids.with_id, ids.with_id - ids.distinct
    if without:
        reasons.error(
            f"{without:,} rows of {name} have no id.", "Give them one, or leave them out by a view."
        )
    if repeated:
        reasons.error(
            f"{repeated:,} rows of {name} repeat an id that another row has.",
            "A product's vectors need an id of its own: mend them, or leave them out by a view.",
        )


def _judge_reference(
    reasons: Reasons,
    products: TableFacts,
    v2: TableFacts | None,
    name: str,
    server: ServerFacts,
) -> None:
    """Without a foreign key nothing breaks: each run then removes the vectors of gone products."""
    if v2 is not None:
        return
    consequence = "so v2 gets no foreign key; each run removes the vectors of gone products itself."
    id_column = products.columns.get("id")
    if not products.is_table:
        reasons.warning(f"{name} is not a table (a view has no keys), {consequence}", "")
    elif id_column is not None and not id_column.is_key:
        reasons.warning(
            f"{name}.id is not a primary key or unique, {consequence}",
            f"ALTER TABLE {_qualified(products)} ADD PRIMARY KEY (id); if you want one.",
        )
    elif not products.may_reference:
        reasons.warning(
            f"{server.role} may not refer to {name}, {consequence}",
            f"GRANT REFERENCES ON {_qualified(products)} TO {_quoted(server.role)}; "
            "if you want one.",
        )


def _judge_v1(
    reasons: Reasons, v1: TableFacts | None, server: ServerFacts, settings: Settings
) -> None:
    name = settings.catalogue.v1
    if v1 is None:
        reasons.warning(
            f"There is no table {name} (v1), so v2 cannot be compared with it.",
            "Set catalogue.v1 in ingestion.toml if it has another name.",
        )
    elif not (v1.may_use_schema and v1.may_select):
        reasons.warning(
            f"{server.role} may not read {name} (v1), so v2 cannot be compared with it.",
            f"GRANT SELECT ON {_qualified(v1)} TO {_quoted(server.role)};",
        )


def _judge_v2(reasons: Reasons, facts: DatabaseFacts, settings: Settings) -> None:
    name, v2, server, home = settings.catalogue.v2, facts.v2, facts.server, facts.v2_home
    if server is None:
        return
    role = _quoted(server.role)
    if home is None:
        reasons.error(
            f"The schema that {name} would be created in does not exist "
            f"(search_path: {server.search_path}).",
            f"CREATE SCHEMA, or set catalogue.v2 or the search_path of {server.role}.",
        )
        return
    if not (home.may_use and home.may_create):
        what = f"create {name}" if v2 is None else f"index {name}"
        grant = f"GRANT USAGE, CREATE ON SCHEMA {_quoted(home.name)} TO {role};"
        message = f"{server.role} may not create in schema {home.name}, so it cannot {what}."
        if v2 is None or not home.may_use:
            reasons.error(message, grant)
        else:
            reasons.warning(message, grant)
    if v2 is None:
        return
    if not v2.is_table:
        reasons.error(f"{name} is not a table.", "Set catalogue.v2 to a table's name.")
        return
    rights = {
        "SELECT": v2.may_select,
        "INSERT": v2.may_insert,
        "UPDATE": v2.may_update,
        "DELETE": v2.may_delete,
    }
    if missing := [right for right, held in rights.items() if not held]:
        reasons.error(
            f"{server.role} lacks {', '.join(missing)} on {name}.",
            f"GRANT {', '.join(missing)} ON {_qualified(v2)} TO {role};",
        )
    if not v2.is_owner:
        reasons.warning(
            f"{name} belongs to another role, and only its owner may index it.",
            f"ALTER TABLE {_qualified(v2)} OWNER TO {role}; or let the owner create the indexes.",
        )
    _judge_v2_columns(reasons, facts, v2, settings)


def _judge_v2_columns(
    reasons: Reasons, facts: DatabaseFacts, v2: TableFacts, settings: Settings
) -> None:
    name = settings.catalogue.v2
    adopt = "Add it, or set catalogue.v2 to a table that this project may create."
    key = v2.columns.get("productId")
    if key is None:
        reasons.error(f'{name} has no column "productId".', adopt)
    else:
        if not key.is_key:
            reasons.error(
                f'{name}."productId" is not unique, so a product could get two rows.',
                f'ALTER TABLE {_qualified(v2)} ADD PRIMARY KEY ("productId");',
            )
        id_type = _id_type(facts.products)
        if id_type is not None and not _comparable(key.id_type, id_type):
            reasons.error(
                f'{name}."productId" is {key.type} and {settings.catalogue.products}.id is '
                f"{id_type}.",
                f'ALTER TABLE {_qualified(v2)} ALTER COLUMN "productId" TYPE {id_type};',
            )
    _judge_vector_columns(reasons, v2, settings)
    _judge_required_columns(reasons, v2, name)


def _judge_vector_columns(reasons: Reasons, v2: TableFacts, settings: Settings) -> None:
    name = settings.catalogue.v2
    for aspect in Aspect:
        column, expected = v2.columns.get(aspect.column), settings.aspects[aspect].dimensions
        if column is None:
            reasons.error(
                f"{name} has no column {aspect.column}.",
                f"ALTER TABLE {_qualified(v2)} ADD COLUMN {aspect.column} vector({expected});",
            )
        elif column.type.rpartition(".")[2] != "vector":
            reasons.error(
                f"{name}.{aspect.column} is {column.type}, and vector({expected}) is expected.",
                "Set catalogue.v2 to another table, or change the column's type.",
            )
        elif column.type_modifier is None:
            reasons.error(
                f"{name}.{aspect.column} has no fixed number of dimensions, and no index can be "
                "built on it.",
                f"ALTER TABLE {_qualified(v2)} ALTER COLUMN {aspect.column} TYPE "
                f"vector({expected});",
            )
        elif column.type_modifier != expected:
            reasons.error(
                f"{name}.{aspect.column} has {column.type_modifier} dimensions, and the settings "
                f"say {expected}.",
                f"Set aspects.{aspect}.model and dimensions to what the table holds, or "
                "catalogue.v2 to a new table.",
            )


def _judge_required_columns(reasons: Reasons, v2: TableFacts, name: str) -> None:
    for column_name, column in v2.columns.items():
        if column_name == "productId" or not column.is_required:
            continue
        drop = f"ALTER TABLE {_qualified(v2)} ALTER COLUMN {_quoted(column_name)} DROP NOT NULL;"
        if column_name in {aspect.column for aspect in Aspect}:
            message = "may not be NULL, and an aspect without text has no vector."
            reasons.error(f"{name}.{column_name} {message}", drop)
        else:
            message = "needs a value in every row, and a run has none for it."
            reasons.error(f"{name}.{column_name} {message}", f"{drop} Or give it a default.")


def _judge_mapping(reasons: Reasons, mapping: MappingFacts, id_type: IdType | None) -> None:
    file = mapping.file
    if mapping.refusal is not None:
        reasons.error(
            f"{file} does not run: {mapping.refusal}.",
            "It must be one SELECT over columns that exist; try it in psql.",
        )
        return
    expected = ("product_id", "aspect", "text")
    if missing := [column for column in expected if column not in mapping.column_types]:
        reasons.error(
            f"{file} gives no column {' and no column '.join(missing)}. "
            f"It gives {_listed(mapping.column_types)}.",
            "Every row is product_id, aspect, text.",
        )
        return
    _judge_mapping_types(reasons, mapping, id_type)
    if mapping.unsteady:
        reasons.error(
            f"{file} gives other texts each time it is asked, of the same products: "
            f"{_sampled(mapping.unsteady, len(mapping.unsteady))}. Every run would embed them "
            "again.",
            "Take out what changes by itself, such as random(), now() or clock_timestamp(): a text "
            "follows from the product alone. string_agg needs an ORDER BY.",
        )
    if mapping.clocks and not mapping.unsteady:
        reasons.warning(
            f"{file} uses {' and '.join(mapping.clocks)}. Texts that change with time or chance "
            "are embedded, and paid for, again and again.",
            "Take it out of what becomes text; in a condition on which products there are, it may "
            "stay.",
        )
    if mapping.aspects is not None:
        _judge_mapping_rows(reasons, file, mapping.aspects)


def _judge_mapping_types(reasons: Reasons, mapping: MappingFacts, id_type: IdType | None) -> None:
    types = mapping.column_types
    mapped = id_type_of(types["product_id"])
    if id_type is not None and not _comparable(mapped, id_type):
        reasons.error(
            f"{mapping.file} gives product_id as {types['product_id']}, and ids are {id_type}.",
            "Let product_id be the id of products itself, without a cast.",
        )
    for column in ("aspect", "text"):
        if id_type_of(types[column]) is not IdType.TEXT:
            reasons.error(
                f"{mapping.file} gives {column} as {types[column]}, and text is expected.",
                f"Cast it: {column}::text.",
            )


def _judge_mapping_rows(
    reasons: Reasons, file: str, aspects: Mapping[str | None, MappedAspect]
) -> None:
    for name, given in aspects.items():
        if name is None or name not in set(Aspect):
            reasons.error(
                f"{file} names an unknown aspect, {'NULL' if name is None else repr(name)} "
                f"({given.rows:,} rows).",
                f"The aspects are {', '.join(Aspect)}.",
            )
        if given.without_product:
            reasons.error(
                f"{file} gives rows of aspect {name} without a product_id.", "Leave them out."
            )
        if given.repeated:
            reasons.error(
                f"{file} gives {given.repeated:,} products more than one row of aspect {name}: "
                f"{_sampled(given.repeated_sample, given.repeated)}.",
                "One row for each product and aspect: does a join multiply rows? string_agg makes "
                "one text of several.",
            )
    for aspect in Aspect:
        rows = aspects.get(aspect.value)
        if rows is None and aspects:
            reasons.warning(
                f"{file} gives no rows of aspect {aspect}; its vectors will all be NULL.",
                "Add the aspect to the mapping if your shop has text for it.",
            )
        elif rows is not None and rows.rows == rows.empty_rows:
            reasons.warning(
                f"{file} gives only empty texts for aspect {aspect}; its vectors will all be NULL.",
                "A NULL in a || makes the whole text NULL: concat_ws and coalesce do not.",
            )


def _id_type(table: TableFacts | None) -> IdType | None:
    column = table.columns.get("id") if table else None
    return column.id_type if column else None


def _comparable(one: IdType | None, other: IdType) -> bool:
    whole_numbers = {IdType.INTEGER, IdType.BIGINT}
    return one is other or {one, other} == whole_numbers


def _version(version: str | None) -> tuple[int, ...]:
    """`0.8.5` as (0, 8, 5); no version is older than any."""
    numbers = (version or "").split(".")
    return tuple(int(number) for number in numbers if number.isdecimal())


def _quoted(name: str) -> str:
    """A name as it can be pasted into SQL: quoted where it must be."""
    plain = name.isascii() and name.isidentifier() and name == name.lower()
    return name if plain else '"' + name.replace('"', '""') + '"'


def _qualified(table: TableFacts) -> str:
    return f"{_quoted(table.schema)}.{_quoted(table.name)}"


def _listed(columns: Mapping[str, object]) -> str:
    names = list(columns)
    return ", ".join(names[:_SAMPLE]) + _and_more(len(names) - _SAMPLE) if names else "no columns"


def _sampled(sample: Sequence[str], count: int) -> str:
    return ", ".join(sample[:_SAMPLE]) + _and_more(count - len(sample[:_SAMPLE]))


def _and_more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""

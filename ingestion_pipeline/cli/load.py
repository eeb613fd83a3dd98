"""`ingest load`: a catalogue file becomes a products table."""

from __future__ import annotations

from pathlib import Path

from ingestion_pipeline.cli import terminal
from ingestion_pipeline.cli.environment import Environment, database_url, prepare
from ingestion_pipeline.cli.exit_codes import ExitCode
from ingestion_pipeline.database.catalogue_file import CatalogueFile, read
from ingestion_pipeline.database.connection import connect
from ingestion_pipeline.database.products_table import V1, V2, Present, ProductsTable
from ingestion_pipeline.database.queries import Queries
from ingestion_pipeline.errors import InputError
from ingestion_pipeline.settings import CatalogueSettings, Settings

# What the packaged product_texts.sql reads, all of them text.
MAPPED_COLUMNS = ("description", "usage", "features")


def load(file: Path, *, table: str | None, replace: bool, yes: bool, as_json: bool) -> int:
    """Read the file, make the table, say what it holds and what comes next."""
    catalogue = read(file)
    environment = prepare(report=terminal.note)
    settings = environment.settings
    target = _checked(table) if table else settings.catalogue.products
    with connect(database_url(settings)) as connection:
        products = ProductsTable(
            connection,
            _queries(settings, target),
            of_the_shop=target == settings.catalogue.products,
        )
        present = products.present(catalogue)
        if present:
            _may_replace(target, present, environment, replace=replace, yes=yes)
        products.load(catalogue, present)

    next_steps = _next_steps(catalogue, target, settings)
    if as_json:
        terminal.print_json(
            {
                "table": target,
                "products": len(catalogue),
                "id_type": catalogue.id_type,
                "columns": {column.name: column.type for column in catalogue.columns},
                "cleaned_texts": catalogue.cleaned,
                "replaced": list(present.losses) if present else [],
                "next": next_steps,
            }
        )
        return ExitCode.OK
    terminal.say(f"{terminal.counted(len(catalogue), 'product')} loaded from {file} into {target}")
    terminal.say()
    rows = [
        (column.name, column.type, _filled(catalogue, column.name)) for column in catalogue.columns
    ]
    terminal.table(("column", "type", "filled"), rows, right={2})
    if catalogue.cleaned:
        terminal.say()
        terminal.say(
            f"  {catalogue.cleaned:,} texts held characters that PostgreSQL does not store; "
            "these were left out"
        )
    terminal.say()
    for step in next_steps:
        terminal.next_step(step)
    return ExitCode.OK


def _checked(table: str) -> str:
    """The name by the rules of the settings."""
    from pydantic import ValidationError

    try:
        return CatalogueSettings(products=table).products
    except ValidationError as error:
        raise InputError(
            f"--table {table!r}: expected a table, or a schema and a table: shop.products."
        ) from error


def _queries(settings: Settings, table: str) -> Queries:
    catalogue = settings.catalogue
    return Queries(tables={"products": table, V1: catalogue.v1, V2: catalogue.v2})


def _may_replace(
    table: str, present: Present, environment: Environment, *, replace: bool, yes: bool
) -> None:
    """Raise InputError unless the user, knowing what is lost, said to go on."""
    lost = "".join(f"\n  - {loss}" for loss in present.losses)
    if environment.embedded:
        if present.products and not replace:
            raise InputError(
                f"{table} holds products already. Replacing it loses:{lost}\n"
                "→ Add --replace to do it, or --table NAME to load beside it."
            )
    elif not (replace and yes):
        raise InputError(
            f"{table} is there already, in the database that DATABASE_URL names. Replacing it "
            f"drops the table and loses:{lost}\n"
            "→ Add --replace --yes to do it, or --table NAME to load beside it."
        )


def _filled(catalogue: CatalogueFile, column: str) -> str:
    """The share of products with a value; rounded down, so that 100% means all."""
    values = catalogue.frame[column]
    filled = int((values.notna() & (values != "")).sum())
    return f"{filled * 100 // len(catalogue)}%"


def _next_steps(catalogue: CatalogueFile, table: str, settings: Settings) -> list[str]:
    steps = []
    if table != settings.catalogue.products:
        steps.append(f'Set catalogue.products = "{table}" in ingestion.toml.')
    types = {column.name: column.type for column in catalogue.columns}
    lacking = [name for name in MAPPED_COLUMNS if types.get(name) != "text"]
    if lacking and settings.catalogue.product_texts is None:
        have = ", ".join(name for name in types if name != "id")
        steps.append(
            f"Edit sql/product_texts.sql, which reads text columns that are not there "
            f"({', '.join(lacking)}): it says what text stands for each aspect. There are {have}."
        )
    return [*steps, "`ingest --limit 5` takes five products all the way, `ingest` takes all."]

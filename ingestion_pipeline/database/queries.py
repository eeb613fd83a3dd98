"""The only reader of `sql/`: finds a statement by name and composes it for one shop.

A file holds one statement over the canonical table names `products`, `product_embeddings` and
`product_embeddings_v2`, so that most run in psql as they are. `Queries` puts the shop's own names
in their place, as identifiers. In braces stands another file of `sql/`, taken in as a sub-select,
or a piece of DDL that cannot be a parameter. `product_texts` is the shop's own file and is taken
word for word. Running statements belongs to the other modules of this package.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from psycopg import sql

from ingestion_pipeline.errors import MappingError

PRODUCT_TEXTS = "product_texts"

_TABLES = ("product_embeddings_v2", "product_embeddings", "products")
# Comments, strings and %(parameters)s are passed over; braces and table names are filled in.
_TOKEN = re.compile(
    rf"--[^\n]*|'[^']*'|%\(\w+\)s|\{{(?P<brace>\w+)\}}|\b(?P<table>{'|'.join(_TABLES)})\b"
)
# What of a mapping is code, as against comments, space and semicolons.
_PIECE = re.compile(
    r"--[^\n]*|/\*.*?\*/|[\s;]+"
    r"|(?P<code>'[^']*'|\"[^\"]*\"|(?P<dollar>\$\w*\$).*?(?P=dollar)|.)",
    re.DOTALL,
)


_CLOCK = re.compile(
    r"\b(?:current_(?:date|timestamp|time)|localtime(?:stamp)?)\b"
    r"|\b(?:now|random|random_normal|clock_timestamp|statement_timestamp|transaction_timestamp"
    r"|timeofday|gen_random_uuid|uuidv[47]|nextval)(?=\s*\()",
    re.IGNORECASE,
)


def identifier(name: str) -> sql.Identifier:
    """A table's name, which may carry a schema, as an identifier."""
    return sql.Identifier(*name.split("."))


@functools.cache
def _folder() -> Traversable:
    """`sql/` inside the installed package, or beside it in a checkout."""
    package = resources.files("ingestion_pipeline")
    inside = package / "sql"
    if inside.is_dir():
        return inside
    return Path(str(package)).parent / "sql"


@functools.cache
def names() -> list[str]:
    """The name of every statement in `sql/`, sorted."""
    files = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".sql") for name in files if name.endswith(".sql"))


@functools.cache
def text(name: str) -> str:
    """The statement called `name`, as it stands in its file."""
    return (_folder() / f"{name}.sql").read_text(encoding="utf-8")


class Queries:
    """The statements of `sql/`, composed for one shop's names and types."""

    def __init__(
        self,
        *,
        tables: Mapping[str, str],
        literals: Mapping[str, sql.Composable] | None = None,
        product_texts: Path | None = None,
    ) -> None:
        """`tables` maps canonical names to the shop's, `literals` braces to pieces of DDL.

        `product_texts` is the shop's mapping; None is the packaged one.
        """
        self.tables = {table: tables.get(table, table) for table in _TABLES}
        self._literals = dict(literals or {})
        self._product_texts = product_texts

    def product_texts(self) -> str:
        """The shop's mapping, less a closing semicolon and comments at its end.

        Raises `MappingError` if it cannot be read.
        """
        try:
            mapping = (
                self._product_texts.read_text(encoding="utf-8")
                if self._product_texts
                else text(PRODUCT_TEXTS)
            )
        except (OSError, UnicodeDecodeError) as error:
            raise MappingError(
                f"{self._product_texts} cannot be read: {error}. catalogue.product_texts in the "
                "settings names the file that maps your schema to aspect texts."
            ) from error
        pieces = _PIECE.finditer(mapping)
        return mapping[: max((piece.end() for piece in pieces if piece["code"]), default=0)]

    def clocks_in_product_texts(self) -> tuple[str, ...]:
        """What the mapping calls that has another value at another time; comments apart.

        Raises `MappingError` if it cannot be read.
        """
        code = "".join(
            piece["code"] if piece["code"] and piece["code"][0] not in "'$\"" else " "
            for piece in _PIECE.finditer(self.product_texts())
        )
        return tuple(dict.fromkeys(found.lower() for found in _CLOCK.findall(code)))

    def regclass(self, table: str) -> str:
        """The shop's name of a canonical table, quoted as `to_regclass` wants it."""
        return identifier(self.tables[table]).as_string(None)

    @property
    def product_texts_file(self) -> str:
        """Where the mapping stands, for messages."""
        return str(self._product_texts or "sql/product_texts.sql")

    def compose(self, name: str, **literals: sql.Composable) -> sql.Composed:
        """The statement called `name`; `literals` fill the braces that name no file.

        Execute it with parameters, `{}` where it has none: percent signs are doubled.
        """
        parts: list[sql.Composable] = []
        statement = text(name)
        position = 0
        for token in _TOKEN.finditer(statement):
            parts.append(_verbatim(statement[position : token.start()]))
            parts.append(self._part(token, literals))
            position = token.end()
        parts.append(_verbatim(statement[position:]))
        return sql.Composed(parts)

    def _part(self, token: re.Match[str], literals: Mapping[str, sql.Composable]) -> sql.Composable:
        if token["table"]:
            return identifier(self.tables[token["table"]])
        brace = token["brace"]
        if not brace:
            return _verbatim(token[0])
        if brace == PRODUCT_TEXTS:
            # A newline, lest a comment on the last line swallow what follows.
            return _verbatim(self.product_texts().replace("%", "%%") + "\n")
        if brace in names():
            return self.compose(brace, **literals)
        return {**self._literals, **literals}[brace]


def _verbatim(statement: str) -> sql.SQL:
    # Only files of sql/ come here, never values: what LiteralString is meant to guarantee.
    return sql.SQL(statement)

"""Half-open ranges of product ids that tile the whole id space, and their keys.

Ranges are made by cutting: the first begins below every id, the last ends above every id, and each
ends where the next begins. So every id that a shop will ever have belongs to exactly one range, by
construction. Comparing ids is left to PostgreSQL, whose order (a text column's collation) is the
one that counts; nothing here compares two of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote
from uuid import UUID

from ingestion_pipeline.errors import InputError

ProductId = int | str | UUID

UNBOUNDED = "*"
SEPARATOR = ":"


class IdType(StrEnum):
    """The types that `products.id` may have; the value is the type's name in SQL."""

    INTEGER = "integer"
    BIGINT = "bigint"
    UUID = "uuid"
    TEXT = "text"


_DIGITS = {IdType.INTEGER: 10, IdType.BIGINT: 19}


@dataclass(frozen=True)
class ProductIdRange:
    """The ids from `first` up to, but not including, `end`; None stands for no bound."""

    first: ProductId | None
    end: ProductId | None


EVERYTHING = ProductIdRange(None, None)


def split(range_: ProductIdRange, boundaries: Iterable[ProductId]) -> list[ProductIdRange]:
    """Cut `range_` at each boundary, which must be inside it and ascending in the id's order.

    n boundaries give n + 1 ranges; each boundary is the first id of the range above it.
    """
    edges = [range_.first, *boundaries, range_.end]
    return [ProductIdRange(first, end) for first, end in itertools.pairwise(edges)]


def key_of(range_: ProductIdRange, id_type: IdType) -> str:
    """The range's name, `first:end`, as a Dagster partition key.

    Integers have a fixed width, so that the text order of keys is the order of non-negative ids.
    Text ids are percent-encoded, which leaves no character that a partition key or URL forbids.
    """
    return f"{_encoded(range_.first, id_type)}{SEPARATOR}{_encoded(range_.end, id_type)}"


def range_of(key: str, id_type: IdType) -> ProductIdRange:
    """The range that `key_of` named; `InputError` if the key is not one of its making."""
    try:
        first, end = key.split(SEPARATOR)
        range_ = ProductIdRange(_decoded(first, id_type), _decoded(end, id_type))
    except ValueError as error:
        raise _not_a_range(key, id_type) from error
    if key_of(range_, id_type) != key:
        raise _not_a_range(key, id_type)
    return range_


def _not_a_range(key: str, id_type: IdType) -> InputError:
    return InputError(
        f"{key!r} is not a range of {id_type} product ids. Expected FIRST:END, with * for no "
        "bound; `ingest status` lists the ranges."
    )


def _encoded(id_: ProductId | None, id_type: IdType) -> str:
    if id_ is None:
        return UNBOUNDED
    if id_type in _DIGITS:
        number = int(str(id_))
        sign = "-" if number < 0 else ""
        return f"{sign}{abs(number):0{_DIGITS[id_type]}d}"
    # quote() leaves "." and "~" alone; Dagster reserves "..." for ranges of keys.
    return quote(str(id_), safe="").replace(".", "%2E").replace("~", "%7E")


def _decoded(text: str, id_type: IdType) -> ProductId | None:
    if text == UNBOUNDED:
        return None
    if id_type in _DIGITS:
        if not re.fullmatch(r"-?[0-9]+", text):
            raise ValueError(text)
        return int(text)
    if id_type is IdType.UUID:
        return UUID(text)
    return unquote(text, errors="strict")

"""Reading a shop's catalogue from a file: JSON Lines, CSV or Parquet, also gzipped.

What belongs here: turning a file into rows of plain Python values with a PostgreSQL type for each
column, and refusing what cannot become a products table, by name and line. What does not: SQL and
connections (`products_table`).

Nothing is guessed where a guess could lose something: ids such as `00123` stay text, prices keep
their digits, integers with gaps stay integers, and a missing value is NULL, never NaN.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast
from uuid import UUID

from ingestion_pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

ID = "id"
NAME = "name"
# Words for people: text even where every product happens to be called "1984".
TEXT_COLUMNS = frozenset({NAME, "description", "usage", "features"})
LONGEST_IDENTIFIER = 63  # bytes; PostgreSQL cuts longer names, so that two could become one
SAMPLE = 10  # ids named in a message

_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+|0|-?[1-9][0-9]*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# PostgreSQL stores neither NUL nor half a surrogate pair.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Column:
    """A column of the file, with the PostgreSQL type that holds all of its values."""

    name: str
    type: str


@dataclass(frozen=True)
class CatalogueFile:
    """A catalogue, read whole.

    `frame` holds Python values that psycopg adapts, in the order of `columns`: str, int, Decimal,
    bool, UUID, date, time or datetime, nested values as JSON text, and None for what is missing.
    `cleaned` counts texts from which characters were taken that PostgreSQL does not store.
    """

    path: Path
    columns: tuple[Column, ...]
    frame: pd.DataFrame
    cleaned: int

    @property
    def id_type(self) -> str:
        """integer, bigint, uuid or text."""
        return next(column.type for column in self.columns if column.name == ID)

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The rows, in the order of the file."""
        return self.frame.itertuples(index=False, name=None)


def read(path: Path) -> CatalogueFile:
    """Read the catalogue in `path`; its name's ending says what it is.

    Raises InputError: no such file, an ending that is not known, nothing in it, malformed (with the
    line), no `id` or `name` column, an id that is missing, repeated or of no usable type.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"The catalogue file {path} {what}.\n→ Check the path.")
    reader = _reader(path)
    try:
        raw = reader(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole gzip file: {error}.\n→ Fetch or compress it again."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} is not understood.\n"
            "→ Convert it, for example with iconv -f latin1 -t utf-8."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    _check_columns(path, list(raw))
    return _typed(path, raw)


# --- formats: each gives columns of values, None for what is missing ------------------------------

_Columns = Mapping[str, Sequence[Any]]


def _reader(path: Path) -> Callable[[Path], _Columns]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    readers = {
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(suffixes[-1]) if suffixes else None
    if reader is None:
        raise InputError(
            f"{path}: the name's ending says no known format.\n"
            "→ Expected .jsonl, .ndjson, .csv or .parquet, each also with .gz."
        )
    return reader


def _open(path: Path) -> BinaryIO:
    opened = gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # noqa: SIM115 - the caller closes
    return cast("BinaryIO", opened)


def _open_text(path: Path) -> IO[str]:
    # -sig: spreadsheets begin a file with a byte order mark.
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _read_json_lines(path: Path) -> _Columns:
    # Not pandas.read_json: it accepts some malformed lines, and makes floats of integers with gaps.
    records: list[dict[str, Any]] = []
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line, parse_float=Decimal, parse_constant=_constant)
            except json.JSONDecodeError as error:
                raise _malformed(path, number, f"{error.msg} at column {error.colno}") from error
            except (ValueError, RecursionError) as error:
                raise _malformed(path, number, str(error)) from error
            if not isinstance(record, dict):
                raise _malformed(path, number, "expected one JSON object a line")
            records.append(record)
    if not records:
        raise _empty(path)
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in names}


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is not JSON")


def _read_csv(path: Path) -> _Columns:
    import pandas as pd

    with _open_text(path) as text:
        header = text.readline()
    delimiter = max(",;\t|", key=header.count)
    _check_csv(path, delimiter)
    with _open_text(path) as text:
        frame = pd.read_csv(
            text,
            sep=delimiter,
            header=None,  # with its own header, pandas renames repeated columns
            dtype="string",
            keep_default_na=False,  # "None" and "null" are words; what is missing is said below
            skipinitialspace=True,
        )
    names = [str(name) for name in frame.iloc[0]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{path}, line 1: repeated columns: {', '.join(map(repr, repeated))}.")
    fields = {name: frame[position][1:].tolist() for position, name in enumerate(names)}
    return {
        name: _parsed(name, [None if field in ("", "NaN") else field for field in column])
        for name, column in fields.items()
    }


def _check_csv(path: Path, delimiter: str) -> None:
    """Raise InputError with the malformed line; pandas would fill short rows up in silence."""
    with _open_text(path) as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
        line = 1
        header: list[str] = []
        products = 0
        try:
            for row in rows:
                if row and header and len(row) != len(header):
                    raise _malformed(path, line, f"{len(row)} fields, expected {len(header)}")
                products += bool(row and header)
                header = header or row
                line = rows.line_num + 1  # where the next row begins: a field may hold line breaks
        except csv.Error as error:
            raise _malformed(path, line, str(error)) from error
    if not products:
        raise _empty(path)


def _parsed(name: str, values: list[str | None]) -> list[Any]:
    """CSV knows text only: numbers are read where every value of the column is one."""
    present = [value for value in values if value is not None]
    if name in TEXT_COLUMNS or not present:
        return list(values)
    if all(map(_INTEGER.fullmatch, present)):
        return [None if value is None else int(value) for value in values]
    if name != ID and all(map(_NUMBER.fullmatch, present)):
        return [None if value is None else Decimal(value) for value in values]
    return list(values)


def _read_parquet(path: Path) -> _Columns:
    import pandas as pd
    import pyarrow as pa

    with _open(path) as file:
        content = io.BytesIO(file.read())
    if not content.getbuffer().nbytes:
        raise _empty(path)
    try:
        # Arrow's own types: numpy's would turn integers with gaps into floats.
        frame = pd.read_parquet(content, dtype_backend="pyarrow")
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a Parquet file that can be read: {reason}.") from error
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()  # pandas writes the index, often the id, apart
    if frame.empty:
        raise _empty(path)
    return {str(name): _without_nan(pa.array(frame[name].array).to_pylist()) for name in frame}


# --- columns --------------------------------------------------------------------------------------


def _check_columns(path: Path, names: list[str]) -> None:
    for required in (ID, NAME):
        if required not in names:
            raise InputError(
                f"{path} has no column {required!r}; it has {', '.join(map(repr, names))}.\n"
                f"→ Rename the column that holds each product's {required} to {required!r}."
            )
    for name in names:
        if not name.strip() or _UNSTORABLE.search(name):
            raise InputError(f"{path} has a column without a usable name: {name!r}.")
        if len(name.encode()) > LONGEST_IDENTIFIER:
            raise InputError(
                f"{path}: the column name {name!r} is longer than {LONGEST_IDENTIFIER} bytes, "
                "PostgreSQL's limit.\n→ Shorten it."
            )


def _typed(path: Path, raw: _Columns) -> CatalogueFile:
    import pandas as pd

    columns: list[Column] = []
    series: dict[str, Any] = {}
    cleaned = 0
    for name, values in raw.items():
        converted, column_type = _ids(path, values) if name == ID else _values(path, name, values)
        storable = [_storable(value) for value in converted]
        cleaned += sum(a is not b for a, b in zip(converted, storable, strict=True))
        columns.append(Column(name, column_type))
        series[name] = pd.Series(storable, dtype=object)
    return CatalogueFile(path, tuple(columns), pd.DataFrame(series), cleaned)


def _ids(path: Path, values: Sequence[Any]) -> tuple[list[Any], str]:
    missing = sum(value is None or value == "" for value in values)
    if missing:
        first = next(row for row, value in enumerate(values, 1) if value is None or value == "")
        raise InputError(
            f"Products without an id in {path}: {missing:,}; the first is product number "
            f"{first:,} of the file."
        )
    ids, column_type = _typed_ids(path, values)
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        named = ", ".join(str(value) for value in repeated[:SAMPLE])
        more = f" and {len(repeated) - SAMPLE:,} more" if len(repeated) > SAMPLE else ""
        raise InputError(
            f"Ids that occur more than once in {path}: {named}{more}.\n"
            "→ Each product needs an id of its own."
        )
    return ids, column_type


def _typed_ids(path: Path, values: Sequence[Any]) -> tuple[list[Any], str]:
    if all(isinstance(value, float | Decimal) and value == int(value) for value in values):
        values = [int(value) for value in values]  # a whole column of 1.0, 2.0: numpy wrote it
    kinds = {type(value) for value in values}
    if kinds == {int} and all(value in _INT64 for value in values):
        return list(values), "integer" if all(value in _INT32 for value in values) else "bigint"
    if kinds == {UUID}:
        return list(values), "uuid"
    if kinds == {str} and all(map(_UUID.fullmatch, values)):
        return [UUID(value) for value in values], "uuid"
    if kinds <= {str, int, UUID}:
        return [str(value) for value in values], "text"
    odd = next(value for value in values if type(value) not in {str, int, UUID})
    raise InputError(f"{path}: {odd!r} is no id: expected whole numbers, UUIDs or text.")


_TYPES: Mapping[frozenset[type], str] = {
    frozenset({bool}): "boolean",
    frozenset({int}): "bigint",
    frozenset({Decimal}): "numeric",
    frozenset({int, Decimal}): "numeric",
    frozenset({date}): "date",
    frozenset({time}): "time",
    frozenset({UUID}): "uuid",
}
_SCALARS = (str, bool, int, Decimal, date, time, datetime, UUID)


def _values(path: Path, name: str, values: Sequence[Any]) -> tuple[list[Any], str]:
    values = [Decimal(repr(value)) if isinstance(value, float) else value for value in values]
    kinds = frozenset(type(value) for value in values if value is not None)
    if kinds and all(issubclass(kind, datetime) for kind in kinds):
        zones = {value.tzinfo is not None for value in values if value is not None}
        if len(zones) == 1:
            return values, "timestamptz" if zones.pop() else "timestamp"
    if any(issubclass(kind, bytes) for kind in kinds):
        raise InputError(f"{path}: column {name!r} holds bytes.\n→ Leave it out of the file.")
    if kinds and not all(issubclass(kind, _SCALARS) for kind in kinds) and name != NAME:
        return [None if value is None else _json(value) for value in values], "jsonb"
    if name not in TEXT_COLUMNS and kinds in _TYPES:
        whole = kinds == {int} and not all(value in _INT64 for value in values if value is not None)
        return values, "numeric" if whole else _TYPES[kinds]
    return [None if value is None else _text(value) for value in values], "text"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _json(value: Any) -> str:
    return json.dumps(_without_unstorable(value), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Numbers stay numbers inside JSON; what JSON has no word for becomes text."""
    return float(value) if isinstance(value, Decimal) else str(value)


def _without_unstorable(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("", value)
    if isinstance(value, Mapping):
        return {_UNSTORABLE.sub("", str(k)): _without_unstorable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_unstorable(item) for item in value]
    return value


def _storable(value: Any) -> Any:
    if isinstance(value, str) and _UNSTORABLE.search(value):
        return _UNSTORABLE.sub("", value)
    return value


def _without_nan(values: Sequence[Any]) -> list[Any]:
    # Only NaN, and pandas' NaT, differ from themselves.
    return [None if value is None or value != value else value for value in values]  # noqa: PLR0124


def _empty(path: Path) -> InputError:
    return InputError(f"{path} holds no products.\n→ Give a file with one product a line or row.")


def _malformed(path: Path, line: int, reason: str) -> InputError:
    return InputError(
        f"{path}, line {line}: malformed: {reason}.\n→ Mend that line, then load again."
    )

"""Every error this project raises on purpose, as one tree.

The branch says what the work loop does about it; the class says what happened::

    IngestionError
    ├── PermanentTextError       one text cannot be embedded: bisect, record that product, go on
    ├── TransientError           may pass by itself: wait, then try again, within a bound
    │   ├── InvalidAnswerError   an embedder gave no usable answer: ask again once, then bisect
    │   ├── BatchTooLargeError   no memory for a batch: halve the budget, ask again at once
    │   ├── ConnectionLostError  the session is over: the next statement opens another
    │   └── LeaseLostError       another run holds the range: leave it to that run
    ├── OutageError              nothing more can succeed: stop, keep the work, blame no product
    │   ├── DatabaseUnavailableError
    │   ├── DatabaseRightsError
    │   ├── DiskFullError
    │   ├── OutOfMemoryError     not even one text fits
    │   ├── TooManyFailuresError more failed products than the settings allow
    │   ├── WeightsError
    │   └── RangeFailedError     this range cannot be finished: other ranges may go on
    ├── SettingsError            ingestion.toml, an environment variable or an option is wrong
    ├── MappingError             sql/product_texts.sql is wrong
    ├── InputError               a file given to us is wrong
    ├── InterruptedRunError      the user asked to stop
    │   └── TerminatedRunError   the machine did, or its terminal was closed
    └── PreflightError           a check before the run says no

A message names the thing and the next step, and never holds a secret: whatever quotes a connection
string passes through `redacted` first. Anything here belongs to no library: translating a library's
exceptions into these is the work of the module that calls the library.
"""

from __future__ import annotations

import re


class IngestionError(Exception):
    """Base of every error raised on purpose. `str(error)` is fit for a user's eyes."""


class PermanentTextError(IngestionError):
    """One text cannot be embedded, now or later."""


class TransientError(IngestionError):
    """A fault that may pass by itself."""


class InvalidAnswerError(TransientError):
    """An embedder gave no answer to a batch, or one of which nothing can be believed."""


class BatchTooLargeError(TransientError):
    """The process or the device has no memory for a batch of this size."""


class ConnectionLostError(TransientError):
    """The session with the database is over: the server ended it, or the line is dead."""


class LeaseLostError(TransientError):
    """The range is, or has come to be, held by another run."""


class OutageError(IngestionError):
    """Nothing more can succeed until somebody mends something."""


class DatabaseUnavailableError(OutageError):
    """The server cannot be reached, or has gone away."""


class DatabaseRightsError(OutageError):
    """The server refuses: a wrong password, a missing privilege, a read-only server."""


class DiskFullError(OutageError):
    """No space left, in the server or beside it."""


class OutOfMemoryError(OutageError):
    """There is no memory to embed even one text."""


class TooManyFailuresError(OutageError):
    """More products have failed than the settings allow: what is wrong is not the products."""


class WeightsError(OutageError):
    """Model files are missing, cannot be fetched, or are not the pinned ones."""


class RangeFailedError(OutageError):
    """One range cannot be finished; the others are not affected."""


class SettingsError(IngestionError):
    """A setting is wrong: the message names the file, the key and what is expected."""


class MappingError(IngestionError):
    """`product_texts.sql` does not parse, lacks a column or names an unknown aspect."""


class InputError(IngestionError):
    """A file given by the user is missing, empty or malformed."""


class PreflightError(IngestionError):
    """At least one check before the run failed; the message lists every reason."""


class InterruptedRunError(IngestionError):
    """The user asked to stop; everything committed is kept."""


class TerminatedRunError(InterruptedRunError):
    """The process was told to end, or its terminal was closed; everything committed is kept."""


# Up to the last @: a password may hold / and @ that should have been percent-encoded.
_URL_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^:/?#@\s]*):\S*@", re.IGNORECASE)
_KEY_PASSWORD = re.compile(
    r"(?P<before>\b(?:(?:pg|ssl)?password|passwd|pwd|api[_-]?key|token)[\"']?\s*[=:]\s*)"
    r"(?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^\s&'\"]+)",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` with the password of every connection string in it replaced by `***`."""
    text = _URL_PASSWORD.sub(r"\g<before>:***@", text)
    return _KEY_PASSWORD.sub(r"\g<before>***", text)

"""Every error this project raises on purpose, as one tree.

The branch says what the work loop does about it; the class says what happened::

    IngestionError
    ├── PermanentTextError       one text cannot be embedded: bisect, record that product, go on
    ├── TransientError           may pass by itself: wait, then try again, within a bound
    │   ├── InvalidAnswerError   an embedder gave no usable answer: ask again once, then bisect
    │   ├── BatchTooLargeError   no memory for a batch: halve the budget, ask again at once
    │   ├── RateLimitedError     an API asks for patience: everyone slows down, nobody fails
    │   ├── ServiceUnavailableError  an API does not answer, or is not well
    │   ├── ConnectionLostError  the session is over: the next statement opens another
    │   └── LeaseLostError       another run holds the range: leave it to that run
    ├── OutageError              nothing more can succeed: stop, keep the work, blame no product
    │   ├── DatabaseUnavailableError
    │   ├── DatabaseRightsError
    │   ├── DiskFullError
    │   ├── OutOfMemoryError     not even one text fits
    │   ├── TooManyFailuresError more failed products than the settings allow
    │   ├── WeightsError
    │   ├── EmbeddingServiceError  an API refuses or is gone: key, model, quota, address
    │   ├── BudgetReachedError   as much is spent as the settings allow
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
    """Base of every error raised on purpose. `str(error)` is fit for a user's eyes.

    `billed_tokens` is what a provider may charge for although nothing came of it.
    """

    billed_tokens: int = 0


class PermanentTextError(IngestionError):
    """One text cannot be embedded, now or later."""


class TransientError(IngestionError):
    """A fault that may pass by itself."""


class InvalidAnswerError(TransientError):
    """An embedder gave no answer to a batch, or one of which nothing can be believed."""


class BatchTooLargeError(TransientError):
    """The process or the device has no memory for a batch of this size."""


class RateLimitedError(TransientError):
    """An embedding API asks for patience: for `retry_after` seconds, where it says how long."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceUnavailableError(TransientError):
    """An embedding API cannot be reached, does not answer, or says that it is not well."""


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


class EmbeddingServiceError(OutageError):
    """An embedding API refuses the key, the model or more quota, or cannot be reached for long."""


class BudgetReachedError(OutageError):
    """As much has been spent as the settings allow; what was paid for is kept."""


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
_BEARER = re.compile(r"(?P<before>\bBearer\s+)[a-z0-9._~+/=-]{8,}", re.IGNORECASE)
# OpenAI's, Google's and Hugging Face's say what they are.
_KEY = re.compile(r"(?<![a-zA-Z0-9])(?P<before>sk-|AIza|hf_)[a-zA-Z0-9_-]{16,}")


def redacted(text: str) -> str:
    """`text` with every password of a connection string, and every key, replaced by `***`."""
    text = _BEARER.sub(r"\g<before>***", text)
    text = _KEY.sub(r"\g<before>***", text)
    text = _URL_PASSWORD.sub(r"\g<before>:***@", text)
    return _KEY_PASSWORD.sub(r"\g<before>***", text)

"""What passes between the catalogue, the work loop and the store. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.ranges import ProductId

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class StaleText:
    """An aspect that needs a vector: `text` as SQL gives it, `digest` (32 bytes) of just that."""

    product_id: ProductId
    aspect: Aspect
    fingerprint: str
    text: str | None
    digest: bytes


class Outcome(StrEnum):
    """What became of an aspect."""

    EMBEDDED = "embedded"
    REUSED = "reused"
    EMPTY = "empty"
    FAILED = "failed"


@dataclass(frozen=True, eq=False)
class KnownVector:
    """A vector that stands for a text: float32 (dimensions,), the text's tokens, cut or not."""

    vector: npt.NDArray[np.float32]
    tokens: int
    truncated: bool


@dataclass(frozen=True, eq=False)
class AspectResult:
    """What to commit for one aspect: `known` where there is a vector, `reason` where it failed."""

    stale: StaleText
    outcome: Outcome
    known: KnownVector | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Spend:
    """What one batch took: requests to the model, distinct texts, tokens, dollars and seconds.

    `seconds` is the time in which a worker had some batch at a model: of several at once, each
    counts what passed since the one before it. `cost` None: not known; `price_version` says by
    whose list it was reckoned. `batch` names it, so that a commit whose reply was lost is not
    counted twice.
    """

    fingerprint: str | None = None
    requests: int = 0
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cost: Decimal | None = None
    price_version: str | None = None
    batch: UUID = field(default_factory=uuid4)


@dataclass(frozen=True)
class RunIdentity:
    """Whose work this is: a Dagster run, the command or backfill behind it, and the range."""

    run_id: str
    invocation: str
    range_key: str


@dataclass(frozen=True)
class Lease:
    """The right to write to a range, until `expires_at` on the database's clock.

    Each write renews it; `fence` tells this lease's writes from those of any other.
    """

    owner: RunIdentity
    fence: int
    seconds: int
    expires_at: datetime

"""The Protocol that every engine keeps, and the test an answer passes before it is believed.

Only the shape of an answer is judged here: pure, without a model. Which texts form a batch is
decided in `batching`, what becomes of a bad text in `reingestion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ingestion_pipeline.errors import InvalidAnswerError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Vectors of any model in use have a norm near 1 or well above it: below this it is no direction.
SMALLEST_NORM = 1e-6


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What an engine answers for n texts, in the order of the texts.

    Attributes:
        vectors: float32, shape (n, dimensions).
        tokens: for each text the tokens the model saw: prefix and special tokens included, after
            cutting.
        truncated: for each text whether it was cut to fit the model.
        indexes: for each row the position of the text that it answers, where the answer says so;
            None means that the rows are in the order of the texts.

    """

    vectors: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[bool]
    indexes: Sequence[int] | None = None


class Embedder(Protocol):
    """Embeds texts with one model, at one fixed number of dimensions."""

    @property
    def dimensions(self) -> int:
        """Numbers in each vector."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """For each text the tokens the model would see, which is at most what it can take."""
        ...

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed one planned batch; no texts give an answer of no rows.

        Raises:
            PermanentTextError: one of these texts can never be embedded.
            BatchTooLargeError: there is no memory for so many texts at once.
            TransientError: the same call may succeed later.
            OutageError: no call can succeed until somebody mends something.

        """
        ...


def in_order(embeddings: Embeddings, expected_count: int) -> Embeddings:
    """The answer with its rows in the order of the texts, as its `indexes` tell.

    Raises:
        InvalidAnswerError: the indexes do not name each text once.

    """
    import numpy as np

    indexes = embeddings.indexes
    if indexes is None:
        return embeddings
    counts = {
        len(indexes),
        len(embeddings.vectors),
        len(embeddings.tokens),
        len(embeddings.truncated),
    }
    if sorted(indexes) != list(range(expected_count)) or counts != {expected_count}:
        raise InvalidAnswerError(
            f"{expected_count} texts were sent, and the rows of the answer are for the texts "
            f"{sorted(indexes)[:10]}"
        )
    rows = [int(row) for row in np.argsort(indexes)]
    return Embeddings(
        embeddings.vectors[rows],
        [embeddings.tokens[row] for row in rows],
        [embeddings.truncated[row] for row in rows],
    )


def validate(embeddings: Embeddings, *, expected_count: int, dimensions: int) -> list[int]:
    """The positions of the vectors that must not be stored, ascending; empty where all are good.

    Two kinds of fault are told apart, because the remedy differs. An answer with too few or too
    many rows, or rows of another length, cannot be matched to its texts, so nothing in it can be
    believed. A row that is not finite or has (nearly) no length is the fault of one text: pgvector
    would refuse the former, and accept the latter without ever finding it again through a cosine
    index. The caller takes those texts alone and keeps their neighbours.

    Raises:
        InvalidAnswerError: the answer as a whole cannot be used.

    """
    import numpy as np

    vectors = embeddings.vectors
    if vectors.dtype != np.float32 or vectors.shape[1:] != (dimensions,):
        raise InvalidAnswerError(
            f"expected float32 vectors of {dimensions} dimensions, "
            f"got {vectors.dtype} in the shape {vectors.shape}"
        )
    counts = {len(vectors), len(embeddings.tokens), len(embeddings.truncated)}
    if counts != {expected_count}:
        raise InvalidAnswerError(
            f"{expected_count} texts were sent, and the answer holds {len(vectors)} vectors, "
            f"{len(embeddings.tokens)} token counts and {len(embeddings.truncated)} flags"
        )
    if any(tokens < 0 for tokens in embeddings.tokens):
        raise InvalidAnswerError("the answer counts fewer than no tokens for a text")
    # In double precision the squares of finite float32 numbers cannot overflow. NaN and infinity
    # fail the comparison or the finiteness of the norm.
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms >= SMALLEST_NORM)
    return [int(position) for position in np.flatnonzero(~usable)]

"""One batch of texts and one model: what it answers, and which text is to blame where it does not.

A text that the model cannot take is found by halving, its neighbours get their vectors, and no text
is blamed for what is the model's fault. Waiting, batching and storing belong elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ingestion_pipeline.embedding.embedder import Embedder, Embeddings, in_order, validate
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    IngestionError,
    InvalidAnswerError,
    PermanentTextError,
    RangeFailedError,
    redacted,
)
from ingestion_pipeline.work import KnownVector

CONTROL_TEXT = "A plain cup"
"""A text that every model can embed: where it gets no answer either, the fault is the model's."""

LONGEST_REASON = 1_000

BAD_TWICE = "The model's vector is zero or not finite, twice."

Fault = PermanentTextError | InvalidAnswerError

Answer = tuple[Embeddings, set[int]]
"""Vectors in the order of their texts, and the rows that must not be stored."""


@dataclass
class Asking:
    """Asks `embedder` for the vectors of `texts`.

    `patiently` does an action until no transient error stops it; `before` is called with the texts
    of each request, and may wait. `vectors` and `reasons` hold, by position, what is known so far,
    also when `ask` ended in an error: that is paid for. `requests` and `tokens` are what it took.
    """

    embedder: Embedder
    texts: Sequence[str]
    patiently: Callable[[Callable[[], Answer]], Answer]
    before: Callable[[Sequence[str]], None] = lambda _: None
    vectors: dict[int, KnownVector] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    _bad: list[int] = field(default_factory=list)

    @property
    def unanswered(self) -> list[int]:
        """The positions of which nothing is known yet."""
        known = self.vectors.keys() | self.reasons.keys()
        return [position for position in range(len(self.texts)) if position not in known]

    def ask(self) -> None:
        """Get a vector, or a reason why there is none, for each text.

        Raises `BatchTooLargeError` where memory does not suffice, `RangeFailedError` where no text
        is to blame, and the embedder's `OutageError`.
        """
        self._settle(list(range(len(self.texts))))
        if self.reasons and not self.vectors:
            # Beside answers, a refusal is its text's; where there is none, perhaps the model's.
            self._hear_the_control(PermanentTextError(next(iter(self.reasons.values()))))
        if self._bad:
            again, self._bad = self._bad, []
            self._settle(again)
            if self._bad:
                # Good ones beside it prove little: a model may spoil one of every answer.
                self._hear_the_control(InvalidAnswerError(BAD_TWICE))
            self.reasons |= dict.fromkeys(self._bad, BAD_TWICE)

    def _settle(self, positions: list[int]) -> None:
        """Ask for all of `positions`; each text that is to blame costs log2(n) + 1 requests more.

        Of suspects, half are asked. Where these get an answer, the fault lies in the other half;
        where not, in this one, and the others are asked with the rest at the end.
        """
        while positions:
            fault = self._request(positions)
            if isinstance(fault, InvalidAnswerError):
                fault = self._request(positions)
            if fault is None:
                return
            suspects, positions = positions, []
            asked = suspects
            while len(suspects) > 1:
                middle = len(suspects) // 2
                asked, others = suspects[:middle], suspects[middle:]
                refused = self._request(asked)
                if refused is None:
                    suspects = others
                else:
                    fault, suspects, positions = refused, asked, others + positions
            # By elimination, and nothing left to ask: perhaps all of them were too much at once.
            is_told = asked == suspects or bool(positions)
            self._blame(suspects[0], fault, is_told=is_told)

    def _blame(self, position: int, fault: Fault, *, is_told: bool) -> None:
        """Give a reason why a text has no vector, unless it has one when it is asked for alone.

        A refusal that tells its text is believed. Where there was just no answer, the model may
        have died meanwhile.
        """
        if isinstance(fault, InvalidAnswerError) or not is_told:
            alone = self._request([position])
            if alone is None:
                return
            fault = alone
        if isinstance(fault, InvalidAnswerError):
            self._hear_the_control(fault)
        self.reasons[position] = _storable(str(fault))

    def _hear_the_control(self, fault: Fault) -> None:
        """Raise if there is no answer to a text that every model can embed, either."""
        try:
            bad = self._answer([CONTROL_TEXT])[1]
        except (PermanentTextError, InvalidAnswerError):
            bad = {0}
        if bad:
            self.reasons.clear()
            raise RangeFailedError(
                f"The model gives no usable answer, not even to {CONTROL_TEXT!r}, so no product is "
                f"to blame: {fault} `ingest models` says which model it is."
            ) from fault

    def _request(self, positions: Sequence[int]) -> Fault | None:
        """Take the answer to some texts in, or return why there is none."""
        try:
            embeddings, bad = self._answer([self.texts[position] for position in positions])
        except (PermanentTextError, InvalidAnswerError) as fault:
            return fault
        for row, position in enumerate(positions):
            if row in bad:
                self._bad.append(position)
            else:
                self.vectors[position] = KnownVector(
                    embeddings.vectors[row], embeddings.tokens[row], embeddings.truncated[row]
                )
        return None

    def _answer(self, texts: Sequence[str]) -> Answer:
        """The answer to `texts` in their order, and the rows whose vectors must not be stored."""
        return self.patiently(lambda: self._embedded(texts))

    def _embedded(self, texts: Sequence[str]) -> Answer:
        self.before(texts)
        self.requests += 1
        dimensions = self.embedder.dimensions
        try:
            answer = self.embedder.embed(texts)
            # Believed or not, it is paid for.
            self.tokens += sum(answer.tokens)
            embeddings = in_order(answer, len(texts))
            bad = validate(embeddings, expected_count=len(texts), dimensions=dimensions)
            return embeddings, set(bad)
        except IngestionError as error:
            self.tokens += error.billed_tokens
            raise
        except MemoryError as error:
            raise BatchTooLargeError("the process has no memory left.") from error
        except Exception as error:
            # An engine may choke on a text with any error of its own.
            message = redacted(f"{type(error).__name__}: {error}")
            raise InvalidAnswerError(f"The model raised {message}.") from error


def _storable(reason: str) -> str:
    """A reason as PostgreSQL takes it and people read it: of a bounded length, without NUL."""
    text = redacted(reason).replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."

"""The right answer to a request, in a form that `faults` can damage."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ingestion_pipeline_tests.embedding_server.replies import Reply


@dataclass
class Item:
    """One vector as it stands in the answer; `index` None: left out."""

    index: int | None
    embedding: bytes

    def json(self) -> bytes:
        index = b"" if self.index is None else b'"index":%d,' % self.index
        return b'{"object":"embedding",' + index + b'"embedding":' + self.embedding + b"}"


@dataclass
class Answer:
    """Vectors and what they cost; `items` hold at least one."""

    model: str
    items: list[Item]
    usage: dict[str, int]

    def reply(self) -> Reply:
        """The answer as it goes out."""
        tail = {"model": self.model, "usage": self.usage}
        body = b"".join(
            (
                b'{"object":"list","data":[',
                b",".join([item.json() for item in self.items]),
                b"],",
                json.dumps(tail)[1:].encode(),
            )
        )
        return Reply(200, body, tells_usage=bool(self.usage))


def usage_of(tokens: int) -> dict[str, int]:
    """What OpenAI says about the tokens of a request for embeddings."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}

"""Reading a request for embeddings, and refusing one as OpenAI does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour
from ingestion_pipeline_tests.embedding_server.replies import Refusal, Reply, error_reply
from ingestion_pipeline_tests.embedding_server.vectors import Encoding

_MOST_DIMENSIONS = 16_384
_SHOWN = 4
"""Characters of a wrong key that OpenAI repeats at either end."""

CountTokens = Callable[[str, Sequence[str]], list[int]]
"""From a model and texts to their tokens."""


@dataclass(frozen=True)
class Asked:
    """A request in order: `tokens` are those of each text, `dimensions` those of the answer."""

    model: str
    texts: list[str]
    tokens: list[int]
    dimensions: int
    encoding: Encoding


def check_key(authorization: bytes | None, behaviour: Behaviour) -> None:
    """Let in whoever has the key; otherwise `Refusal`."""
    if behaviour.key is None:
        return
    if authorization is None:
        raise Refusal(
            error_reply(401, "You didn't provide an API key.", code="missing_api_key"),
        )
    if not compare_digest(authorization, f"Bearer {behaviour.key}".encode()):
        raise Refusal(wrong_key(authorization))


def wrong_key(authorization: bytes | None) -> Reply:
    """OpenAI's answer to a key that it does not know: both ends of it are shown."""
    key = (authorization or b"").decode("latin-1").removeprefix("Bearer ")
    hidden = max(0, len(key) - 2 * _SHOWN)
    shown = key[:_SHOWN] + "*" * hidden + key[_SHOWN + hidden :]
    return error_reply(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")


def unknown_model(model: str) -> Reply:
    """OpenAI's answer to a model that it does not have, or not for this key."""
    return error_reply(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    )


def too_long(tokens: int, limit: int) -> Reply:
    """OpenAI's answer to a text of too many tokens."""
    return error_reply(
        400,
        f"This model's maximum context length is {limit} tokens, however you requested {tokens} "
        f"tokens ({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or "
        "completion length.",
        param="input",
    )


def too_many_bytes() -> Reply:
    """The answer to a body that is too large, as OpenAI's gateway gives it."""
    return error_reply(413, "Maximum content size limit exceeded.")


def read(body: bytes, behaviour: Behaviour, count_tokens: CountTokens) -> Asked:
    """What the client asks for; `Refusal` where it cannot be served."""
    if behaviour.bytes_per_request is not None and len(body) > behaviour.bytes_per_request:
        raise Refusal(too_many_bytes())
    try:
        request = json.loads(body)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise Refusal(error_reply(400, "We could not parse the JSON body of your request."))
    model = request.get("model")
    if not isinstance(model, str):
        raise _invalid("model", "you must provide a model parameter")
    if model not in behaviour.dimensions:
        raise Refusal(unknown_model(model))
    encoding = request.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise _invalid("encoding_format", "'encoding_format' must be one of 'float' or 'base64'.")
    dimensions = _dimensions(request.get("dimensions"), model, behaviour)
    texts = _texts(request.get("input"), behaviour)
    tokens = _tokens(texts, count_tokens(model, texts), behaviour)
    return Asked(model, texts, tokens, dimensions, encoding)


def _dimensions(asked: object, model: str, behaviour: Behaviour) -> int:
    if asked is None:
        return behaviour.dimensions[model]
    if model not in behaviour.resizable:
        raise _invalid("dimensions", "This model does not support specifying dimensions.")
    most = min(_MOST_DIMENSIONS, behaviour.dimensions[model])
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= most:
        raise _invalid("dimensions", f"'dimensions' must be an integer from 1 to {most}.")
    return asked


def _texts(given: object, behaviour: Behaviour) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise _invalid("input", "'$.input' is invalid. Please check the API reference.")
    if len(texts) > behaviour.texts_per_request:
        raise _invalid(
            "input",
            f"'input' array is too long: expected at most {behaviour.texts_per_request} items, "
            f"got {len(texts)}.",
        )
    if not all(isinstance(text, str) for text in texts):
        raise _invalid("input", "This server takes strings, and no arrays of tokens.")
    if not all(texts):
        raise _invalid("input", "'$.input' is invalid: 'input' cannot be an empty string.")
    return texts


def _tokens(texts: list[str], tokens: list[int], behaviour: Behaviour) -> list[int]:
    assert len(tokens) == len(texts)
    if max(tokens) > behaviour.tokens_per_text:
        raise Refusal(too_long(max(tokens), behaviour.tokens_per_text))
    if sum(tokens) > behaviour.tokens_per_request:
        raise Refusal(
            error_reply(
                400,
                f"Requested {sum(tokens)} tokens, max {behaviour.tokens_per_request} tokens per "
                "request",
                kind="max_tokens_per_request",
                code="max_tokens_per_request",
            )
        )
    return tokens


def _invalid(param: str, message: str) -> Refusal:
    return Refusal(error_reply(400, message, param=param))

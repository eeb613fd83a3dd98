"""What is known of the services that speak the OpenAI embeddings API: limits, keys, habits.

Data, and finding one's row in it. The settings may override every figure. How requests are made
from it is the business of the API's module; addresses are judged in `endpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ingestion_pipeline.endpoints import parsed
from ingestion_pipeline.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """What one request may hold. None: no limit is known.

    Attributes:
        texts_per_request: inputs of one request.
        tokens_per_request: tokens of all inputs of one request.
        tokens_per_text: tokens of one input, beyond which it is refused or cut.
        bytes_per_request: size of the request's body.

    """

    texts_per_request: int
    tokens_per_request: int | None
    tokens_per_text: int | None
    bytes_per_request: int | None


@dataclass(frozen=True)
class Provider:
    """A service, or a server of one's own, that speaks the API.

    Attributes:
        name: its key in `PROVIDERS`.
        limits: of one request.
        takes_base64: whether vectors may be asked for as base64 of their bytes, which is read in a
            third of the time, and a third as long.
        sends_dimensions: whether `dimensions` is sent without being asked for in the settings.
            Where it is not, vectors come in the model's own size.
        key_variable: the environment variable that holds the key.
        needs_key: whether there is no answer without a key.
        base_url: where it is, if it is in one place for everybody, or by default.
        price_provider: its id in genai-prices; None for what runs on one's own machines.
        fixed_size_models: models that refuse `dimensions` although others of the service take it.

    """

    name: str
    limits: Limits
    takes_base64: bool
    sends_dimensions: bool
    key_variable: str
    needs_key: bool
    base_url: str | None
    price_provider: str | None
    fixed_size_models: frozenset[str] = frozenset()

    def sends_dimensions_for(self, model: str) -> bool:
        """Whether `dimensions` is sent with requests for this model."""
        return self.sends_dimensions and model not in self.fixed_size_models


OPENAI = Provider(
    name="openai",
    # https://platform.openai.com/docs/api-reference/embeddings/create: 2,048 inputs, 300,000 tokens
    # in all and 8,192 each, for every embedding model; `dimensions` from text-embedding-3 on.
    limits=Limits(
        texts_per_request=2_048,
        tokens_per_request=300_000,
        tokens_per_text=8_192,
        bytes_per_request=None,
    ),
    # What its own package asks for.
    takes_base64=True,
    sends_dimensions=True,
    key_variable="OPENAI_API_KEY",
    needs_key=True,
    base_url="https://api.openai.com/v1",
    price_provider="openai",
    fixed_size_models=frozenset({"text-embedding-ada-002"}),
)

GEMINI = Provider(
    name="gemini",
    # https://ai.google.dev/gemini-api/docs/models/gemini-embedding-001: 2,048 tokens a text, of 128
    # to 3,072 dimensions. gemini-embedding-2 takes 8,192 tokens: the settings may say so. More than
    # 100 texts are refused ("at most 100 requests can be in one batch").
    limits=Limits(
        texts_per_request=100,
        tokens_per_request=None,
        tokens_per_text=2_048,
        bytes_per_request=None,
    ),
    # Answers 400, or an error of its own.
    takes_base64=False,
    sends_dimensions=True,
    # https://ai.google.dev/gemini-api/docs/openai: the name of the key and the address.
    key_variable="GEMINI_API_KEY",
    needs_key=True,
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    price_provider="google",
)

# What servers of one's own have in common: whether there is a key is up to whoever runs them.
_OWN_KEY_VARIABLE = "EMBEDDING_API_KEY"

TEXT_EMBEDDINGS_INFERENCE = Provider(
    name="text-embeddings-inference",
    # https://huggingface.co/docs/text-embeddings-inference/cli_arguments: --max-client-batch-size
    # is 32 and --payload-limit 2,000,000 bytes, unless set otherwise. What a text may hold is the
    # model's affair; longer ones are cut (--auto-truncate). --max-batch-tokens bounds what the
    # server computes at once, not what a request may hold.
    limits=Limits(
        texts_per_request=32,
        tokens_per_request=None,
        tokens_per_text=None,
        bytes_per_request=2_000_000,
    ),
    # Since 1.3 (https://github.com/huggingface/text-embeddings-inference/pull/301), ignored before.
    takes_base64=True,
    # Shortens the vectors of every model, whether it was made for that or not.
    sends_dimensions=False,
    key_variable=_OWN_KEY_VARIABLE,
    needs_key=False,
    base_url=None,
    price_provider=None,
)

VLLM = Provider(
    name="vllm",
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html names no limit on inputs
    # or tokens of a request; a text beyond --max-model-len is refused. 256 is our choice: more
    # texts would only wait in its queue.
    limits=Limits(
        texts_per_request=256,
        tokens_per_request=None,
        tokens_per_text=None,
        bytes_per_request=None,
    ),
    # Since 0.5.1 (https://github.com/vllm-project/vllm/pull/5935).
    takes_base64=True,
    # Refuses `dimensions` for a model that is not marked as made for it (Matryoshka).
    sends_dimensions=False,
    key_variable=_OWN_KEY_VARIABLE,
    needs_key=False,
    base_url=None,
    price_provider=None,
)

OLLAMA = Provider(
    name="ollama",
    # https://docs.ollama.com/api/openai-compatibility names no limit. A text beyond the model's
    # context is cut or, in releases since 0.13.5, refused. 64 is our choice: it computes few texts
    # at a time, and a longer request only comes nearer to its time-out.
    limits=Limits(
        texts_per_request=64,
        tokens_per_request=None,
        tokens_per_text=None,
        bytes_per_request=None,
    ),
    takes_base64=False,
    # Releases before 0.11.11 ignore it.
    sends_dimensions=False,
    key_variable=_OWN_KEY_VARIABLE,
    needs_key=False,
    base_url="http://localhost:11434/v1",
    price_provider=None,
)

OTHER = Provider(
    name="other",
    # Of each limit the narrowest known, where there is one that a stranger is likely to share.
    limits=Limits(
        texts_per_request=32,
        tokens_per_request=None,
        tokens_per_text=None,
        bytes_per_request=2_000_000,
    ),
    takes_base64=False,
    sends_dimensions=False,
    key_variable=_OWN_KEY_VARIABLE,
    needs_key=False,
    base_url=None,
    price_provider=None,
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        provider.name: provider
        for provider in (OPENAI, GEMINI, TEXT_EMBEDDINGS_INFERENCE, VLLM, OLLAMA, OTHER)
    }
)

_HOSTS = MappingProxyType(
    {
        "api.openai.com": OPENAI,
        # Where data stays in one region: https://platform.openai.com/docs/guides/your-data
        "eu.api.openai.com": OPENAI,
        "us.api.openai.com": OPENAI,
        "generativelanguage.googleapis.com": GEMINI,
    }
)


def provider_at(endpoint_host: str) -> Provider:
    """The service at this host, as `endpoints.Endpoint.host` gives it; `other` where unknown.

    Servers of one's own are on any host: what they are has to be said in the settings.
    """
    return _HOSTS.get(endpoint_host, OTHER)


DEFAULT_MODEL = "text-embedding-3-small"
"""Of OpenAI, where the settings name none."""

_TOKENS_PER_TEXT = 512
"""Where a server's model is not known: what most models that people run themselves can take."""


def remote_defaults(table: Mapping[str, object]) -> dict[str, object]:
    """What an aspect's table may leave out: the service, its address, its model and its limits.

    Raises `SettingsError` where that cannot be known. Values of a wrong type are left to whoever
    reads the table.
    """
    service, base_url = table.get("service"), table.get("base_url")
    if service is not None and service not in PROVIDERS:
        raise SettingsError(
            f"service {str(service)!r} is not known: expected one of {', '.join(PROVIDERS)}."
        )
    if isinstance(base_url, str):
        endpoint = parsed(base_url)
        provider = PROVIDERS[str(service)] if service else provider_at(endpoint.host)
        base_url = endpoint.base_url
    else:
        provider = PROVIDERS[str(service)] if service else OPENAI
        base_url = provider.base_url
        if base_url is None:
            raise SettingsError(f"service {provider.name!r} needs a base_url: where it listens.")
    model = table.get("model") or (DEFAULT_MODEL if provider is OPENAI else None)
    if model is None:
        raise SettingsError("model is missing: the name under which the endpoint knows it.")
    limits = provider.limits
    sends = table.get("send_dimensions")
    return {
        "service": provider.name,
        "base_url": base_url,
        "model": model,
        "max_tokens": limits.tokens_per_text or _TOKENS_PER_TEXT,
        "api_key_variable": provider.key_variable,
        "send_dimensions": provider.sends_dimensions_for(str(model)) if sends is None else sends,
        "texts_per_request": limits.texts_per_request,
        "tokens_per_request": limits.tokens_per_request,
        "bytes_per_request": limits.bytes_per_request,
    }

"""`ingestion.toml` and the environment, read once into one frozen `Settings`.

Every default is the safe choice. Nothing is read at import time, and a setting that is wrong is
named with its file, its key and what was expected; no fallback hides it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from ingestion_pipeline.aspects import Aspect, FingerprintParts, fingerprint
from ingestion_pipeline.errors import SettingsError
from ingestion_pipeline.model_contents import contents_digest
from ingestion_pipeline.providers import remote_defaults
from ingestion_pipeline.texts import TEXT_RULES

SETTINGS_FILE = "ingestion.toml"

MPNET = "sentence-transformers/all-mpnet-base-v2"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MPNET_REVISION = "e8c3b32edf5434bc2275fc9bab85f82640a19130"
_MINILM_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"


class _Section(BaseModel):
    # A value in the wrong place may be a secret: errors name the key alone.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class CatalogueSettings(_Section):
    """The shop's tables. A name may carry a schema: `shop.products`."""

    products: str = Field(
        default="products", min_length=1, description="The table of products; only read."
    )
    v1: str = Field(
        default="product_embeddings", min_length=1, description="Today's table of vectors."
    )
    v2: str = Field(default="product_embeddings_v2", min_length=1, description="The table to fill.")
    product_texts: Path | None = Field(
        default=None, description="The SQL file that maps the shop's schema to aspect texts."
    )

    @field_validator("products", "v1", "v2")
    @classmethod
    def _at_most_one_dot(cls, name: str) -> str:
        parts = name.split(".")
        if len(parts) > 2 or not all(parts):  # noqa: PLR2004 - schema and table
            raise ValueError("expected a table, or a schema and a table: shop.products")
        return name


class AspectSettings(_Section):
    """The model behind one aspect: what its vectors are, and how they are asked for.

    Part of the fingerprint are provider, model, revision, dimensions, prefix, normalize and
    max_tokens. Where no revision is pinned, so is where the model is found: what the files under
    `path` hold, or base_url.
    """

    provider: Literal["sentence-transformers", "openai"] = Field(
        default="sentence-transformers",
        description="A model on this machine, or any endpoint that speaks OpenAI's API.",
    )
    model: str = Field(min_length=1, description="Its name on the Hugging Face hub, or the API's.")
    revision: str | None = Field(default=None, description="Pinned commit of the model.")
    dimensions: int = Field(ge=1, le=2000, description="Length of a vector; 2,000 is HNSW's limit.")
    prefix: str = Field(default="", description="Put before every text, as some models want.")
    normalize: bool = Field(default=True, description="Scale vectors to length 1.")
    max_tokens: int = Field(ge=8, description="Longer texts are cut here, and flagged.")
    path: Path | None = Field(default=None, description="A folder that holds the model's files.")

    service: str | None = Field(
        default=None, description="Which server it is: openai, gemini, vllm, ollama and so on."
    )
    base_url: str | None = Field(default=None, description="Where the API is, up to /embeddings.")
    api_key_variable: str | None = Field(
        default=None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="Where the key is read from."
    )
    private_network: bool = Field(
        default=False, description="Allow an endpoint in a private network."
    )
    send_dimensions: bool | None = Field(
        default=None, description="Ask for vectors of this length, if the model can shorten them."
    )
    answers_as: str | None = Field(
        default=None, description="Another name under which the model may answer."
    )
    tokenizer: Path | None = Field(
        default=None, description="The model's tokenizer.json, to count tokens exactly."
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, le=3_600, description="An answer later than this is given up."
    )
    requests_at_once: int = Field(
        default=64, ge=1, le=1_000, description="At most so many; how many help is found out."
    )
    texts_per_request: int | None = Field(default=None, ge=1, description="The API's limit.")
    tokens_per_request: int | None = Field(default=None, ge=1, description="The API's limit.")
    bytes_per_request: int | None = Field(default=None, ge=1, description="The API's limit.")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="Your quota, where the API does not say it."
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="Your quota, where the API does not say it."
    )
    dollars_per_million_tokens: Decimal | None = Field(
        default=None, ge=0, description="Its price, where the list of prices does not know it."
    )

    @property
    def is_remote(self) -> bool:
        """Whether texts leave this process."""
        return self.provider == "openai"


def _default_aspects() -> dict[Aspect, AspectSettings]:
    def mpnet() -> AspectSettings:
        return AspectSettings(model=MPNET, revision=_MPNET_REVISION, dimensions=768, max_tokens=384)

    return {
        Aspect.DESCRIPTION: mpnet(),
        Aspect.USAGE: mpnet(),
        Aspect.FEATURE: AspectSettings(
            model=MINILM, revision=_MINILM_REVISION, dimensions=384, max_tokens=256
        ),
    }


class BudgetSettings(_Section):
    """What may be spent on APIs, over all workers and runs, with the models as they are set."""

    tokens: int | None = Field(default=None, ge=0, description="Tokens, counted as billed.")
    dollars: Decimal | None = Field(default=None, ge=0, description="US dollars.")


class RangeSettings(_Section):
    """How the catalogue is cut into Dagster partitions."""

    products_per_range: int = Field(
        default=250, ge=1, le=1_000_000, description="Products in a new range."
    )


class WorkSettings(_Section):
    """The work loop."""

    products_per_page: int = Field(
        default=250, ge=1, le=10_000, description="Products read at a time; bounds the memory."
    )
    tokens_per_batch: int = Field(
        default=2_000,
        ge=1,
        description="Padded tokens that go to the model, and are committed, at once.",
    )
    lease_seconds: int = Field(
        default=300, ge=5, le=86_400, description="How long a silent worker keeps its range."
    )
    retry_seconds: int = Field(
        default=120, ge=0, description="How long a transient error is tried again: a restart, say."
    )
    ranges_at_once: int = Field(
        default=8, ge=1, le=64, description="Ranges that a run holds where a model is an endpoint."
    )
    max_failed_products: int = Field(
        default=100, ge=0, description="More failed products than this: the run stops, checks fail."
    )


class DiskSettings(_Section):
    """What cannot be asked of a server on another machine."""

    free_bytes: int | None = Field(
        default=None, ge=0, description="Free space where a remote server's data lies."
    )


class ScheduleSettings(_Section):
    """The nightly re-ingestion, off until switched on in Dagster."""

    cron: str = Field(default="0 2 * * *", description="When, in cron's five fields.")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str) -> str:
        if len(cron.split()) != 5:  # noqa: PLR2004 - minute, hour, day, month, weekday
            raise ValueError("expected five fields: minute hour day month weekday")
        highest = (59, 23, 31, 12, 7)
        for field, most in zip(cron.split(), highest, strict=True):
            numbers = [int(number) for number in re.findall(r"[0-9]+", field)]
            if any(number > most for number in numbers):
                raise ValueError(f"{field} is out of range: expected numbers up to {most}")
        return cron


class Settings(_Section):
    """Everything a run depends on."""

    catalogue: CatalogueSettings = CatalogueSettings()
    aspects: Mapping[Aspect, AspectSettings] = Field(default_factory=_default_aspects)
    ranges: RangeSettings = RangeSettings()
    work: WorkSettings = WorkSettings()
    budget: BudgetSettings = BudgetSettings()
    disk: DiskSettings = DiskSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    file: Path | None = Field(
        default=None, description="The file that was read; None for all defaults."
    )
    home: Path = Field(description="Where the embedded server and Dagster keep their files.")
    model_cache: Path = Field(description="Where model files are kept, shared by all projects.")
    database_url: SecretStr | None = Field(default=None, description="From DATABASE_URL.")

    def fingerprint_parts(self, aspect: Aspect) -> FingerprintParts:
        """What the fingerprint of the aspect's vectors stands for."""
        model = self.aspects[aspect]
        parts = FingerprintParts(
            provider=model.provider,
            model=model.model,
            revision=model.revision,
            dimensions=model.dimensions,
            prefix=model.prefix,
            normalize=model.normalize,
            max_tokens=model.max_tokens,
            text_rules=TEXT_RULES,
        )
        if model.revision is None:
            if model.is_remote:
                parts["endpoint"] = str(model.base_url)
            elif model.path:
                parts["files"] = contents_digest(model.path)
        return parts

    def fingerprint(self, aspect: Aspect) -> str:
        """The fingerprint of the aspect's vectors under these settings."""
        return fingerprint(**self.fingerprint_parts(aspect))

    @property
    def fingerprints(self) -> dict[Aspect, str]:
        """The fingerprint of each aspect."""
        return {aspect: self.fingerprint(aspect) for aspect in Aspect}


def load_settings(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings file and the environment.

    The file is `file`, else what `INGESTION_SETTINGS` names, else the nearest `ingestion.toml` in
    the working directory or above it, else none (all defaults). Relative paths in it are relative
    to it. Raises `SettingsError` naming file, key and expectation.
    """
    file = _settings_file(file, environ)
    values = _read_toml(file) if file else {}
    folder = file.parent if file else Path.cwd()

    _refuse_computed_keys(values, file)
    aspects = _with_default_aspects(values.pop("aspects", {}), values.pop("embedding", {}), file)
    home = environ.get("INGESTION_HOME")
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    url = environ.get("DATABASE_URL")
    try:
        settings = Settings.model_validate(
            {
                **values,
                "aspects": aspects,
                "file": file,
                "home": Path(home).absolute() if home else folder / ".ingestion",
                "model_cache": cache / "ingestion_pipeline" / "models",
                "database_url": SecretStr(url) if url else None,
            }
        )
    except ValidationError as error:
        raise SettingsError(_explained(error, file)) from error
    _refuse_one_table_for_two(settings)
    return _with_absolute_paths(settings, folder)


def _settings_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = file or (Path(named) if (named := environ.get("INGESTION_SETTINGS")) else None)
    if named:
        if not named.is_file():
            raise SettingsError(f"There is no settings file {named}. Create it or name another.")
        return named.absolute()
    folder = Path.cwd()
    candidates = (parent / SETTINGS_FILE for parent in (folder, *folder.parents))
    return next((path for path in candidates if path.is_file()), None)


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from error


def _refuse_computed_keys(values: Mapping[str, object], file: Path | None) -> None:
    for key in ("file", "home", "model_cache", "database_url"):
        if key in values:
            raise SettingsError(
                f"{file}: {key} is not set here. DATABASE_URL and INGESTION_HOME are read from "
                "the environment, where secrets and places belong."
            )


def _with_default_aspects(given: object, common: object, file: Path | None) -> dict[str, object]:
    """Each aspect's table over what is common to all of them, over its defaults."""
    if not isinstance(given, dict):
        raise SettingsError(f"{file}: aspects: expected tables such as [aspects.description].")
    if not isinstance(common, dict):
        raise SettingsError(f"{file}: embedding: expected a table, [embedding].")
    unknown = sorted(set(given) - set(Aspect))
    if unknown:
        raise SettingsError(
            f"{file}: aspects.{unknown[0]}: unknown aspect. Expected one of {', '.join(Aspect)}."
        )
    merged: dict[str, object] = {}
    for aspect, default in _default_aspects().items():
        table = given.get(aspect.value, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{file}: aspects.{aspect}: expected a table.")
        try:
            merged[aspect.value] = _with_defaults(common | table, default)
        except SettingsError as error:
            raise SettingsError(f"{file}: aspects.{aspect}: {error}") from error
    return merged


def _with_defaults(table: dict[str, object], default: AspectSettings) -> dict[str, object]:
    if table.get("provider", default.provider) == "openai":
        defaults = {"dimensions": default.dimensions} | remote_defaults(table)
        # As it was read: one spelling for one place.
        return defaults | table | {"base_url": defaults["base_url"]}
    values = default.model_dump(exclude_unset=True)
    if table.get("model", default.model) != default.model:
        # A new model brings no default revision along.
        values["revision"] = None
    return values | table


def _explained(error: ValidationError, file: Path | None) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in problem["loc"])
        expected = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            expected = "unknown key; docs/settings.md lists every one"
        lines.append(f"{file or 'default settings'}: {key}: {expected}.")
    return "\n".join(lines)


def _refuse_one_table_for_two(settings: Settings) -> None:
    names = settings.catalogue
    if len({names.products, names.v1, names.v2}) < 3:  # noqa: PLR2004 - three purposes
        raise SettingsError(
            f"{settings.file}: catalogue: products, v1 and v2 are three tables. Only v2 is written."
        )


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    texts = settings.catalogue.product_texts
    aspects = {
        aspect: model.model_copy(
            update={
                name: folder / path
                for name, path in (("path", model.path), ("tokenizer", model.tokenizer))
                if path
            }
        )
        for aspect, model in settings.aspects.items()
    }
    catalogue = settings.catalogue.model_copy(
        update={"product_texts": folder / texts if texts else None}
    )
    return settings.model_copy(update={"aspects": aspects, "catalogue": catalogue})

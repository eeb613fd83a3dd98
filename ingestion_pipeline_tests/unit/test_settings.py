"""ingestion.toml and the environment: defaults, and what a wrong setting says."""

from __future__ import annotations

import re
import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ingestion_pipeline.aspects import Aspect
from ingestion_pipeline.errors import SettingsError
from ingestion_pipeline.settings import MINILM, MPNET, AspectSettings, Settings, load_settings

REPOSITORY_FILE = Path(__file__).parents[2] / "ingestion.toml"
URL = "postgresql://shop:hunter2@db.example.org/shop"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(text: str, tmp_path: Path, **environ: str) -> Settings:
    file = tmp_path / "ingestion.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, environ)


def _refusal(text: str, tmp_path: Path) -> str:
    with pytest.raises(SettingsError) as refused:
        _load(text, tmp_path)
    return str(refused.value)


def _defaults() -> Settings:
    settings = load_settings(environ={})
    assert settings.file is None
    return settings


def _sections(settings: Settings) -> dict[str, Any]:
    places = {"file", "home", "model_cache", "database_url"}
    return settings.model_dump(mode="json", exclude=places)


LOCAL_MODELS = re.compile(r"# \[aspects\.description\]\n.*?(?=\n# And for a model)", re.DOTALL)
API = re.compile(r"(?<=known service:\n)# \[embedding\]\n.*?(?=\n\[budget\])", re.DOTALL)
OPENAI = '# [embedding]\n# provider = "openai"\n'


def _switched_on(part: re.Pattern[str], text: str) -> str:
    """The file with the lines of one commented part in force."""
    switched = part.sub(lambda found: found[0].replace("\n# ", "\n").removeprefix("# "), text)
    assert switched != text
    return switched


def test_the_repositorys_file_states_every_default_word_for_word() -> None:
    text = REPOSITORY_FILE.read_text(encoding="utf-8")
    given: dict[str, Any] = tomllib.loads(text)
    defaults = _sections(_defaults())
    local: dict[str, Any] = tomllib.loads(
        _switched_on(LOCAL_MODELS, text).replace('path = "models/all-mpnet-base-v2"', "# path = ")
    )
    of_a_local_model = AspectSettings.model_fields.keys() - _of_apis()
    assert local["aspects"] == {
        aspect: {key: model[key] for key in of_a_local_model - {"path"}}
        for aspect, model in defaults.pop("aspects").items()
    }
    # Those without a default stand in the file as comments.
    defaults["catalogue"].pop("product_texts")
    defaults["disk"].pop("free_bytes")
    assert given.pop("disk") == defaults.pop("disk") == {}
    assert given.pop("budget") == {}
    assert defaults.pop("budget") == {"tokens": None, "dollars": None}
    assert given == defaults


def _of_apis() -> set[str]:
    """The keys that the file gives for a model behind an API alone."""
    [part] = API.findall(REPOSITORY_FILE.read_text(encoding="utf-8"))
    return set(re.findall(r"^# (\w+) = ", part, re.MULTILINE))


def test_every_key_of_an_aspect_stands_in_the_repositorys_file() -> None:
    text = REPOSITORY_FILE.read_text(encoding="utf-8")
    assert set(AspectSettings.model_fields) == _of_apis() | set(
        re.findall(r"^# (\w+) = ", LOCAL_MODELS.findall(text)[0], re.MULTILINE)
    )
    for key in ("product_texts", "free_bytes", "dollars", "tokens"):
        assert f"\n# {key} = " in text


def test_every_line_of_the_repositorys_file_can_be_switched_on(tmp_path: Path) -> None:
    text = REPOSITORY_FILE.read_text(encoding="utf-8")
    for key in ("product_texts", "free_bytes", "dollars", "tokens"):
        text = text.replace(f"\n# {key} = ", f"\n{key} = ")
    settings = _load(_switched_on(LOCAL_MODELS, text), tmp_path)
    assert settings.disk.free_bytes == 50_000_000_000
    assert settings.budget.dollars == 20
    assert settings.catalogue.product_texts == tmp_path / "sql/product_texts.sql"
    assert settings.aspects[Aspect.DESCRIPTION].path == tmp_path / "models/all-mpnet-base-v2"

    api = _switched_on(API, text).replace(
        "\n[embedding]", '\n[embedding]\nprovider = "openai"\nmodel = "m"'
    )
    usage = _load(api, tmp_path).aspects[Aspect.USAGE]
    assert (usage.service, usage.base_url) == ("vllm", "http://localhost:8000/v1")
    assert usage.tokenizer == tmp_path / "models/tokenizer.json"


def test_two_lines_of_the_repositorys_file_switch_openai_on(tmp_path: Path) -> None:
    text = REPOSITORY_FILE.read_text(encoding="utf-8")
    assert OPENAI in text
    settings = _load(text.replace(OPENAI, OPENAI.replace("# ", "")), tmp_path)
    for aspect, dimensions in zip(Aspect, (768, 768, 384), strict=True):
        model = settings.aspects[aspect]
        assert (model.provider, model.model) == ("openai", "text-embedding-3-small")
        assert model.base_url == "https://api.openai.com/v1"
        assert model.api_key_variable == "OPENAI_API_KEY"
        assert (model.dimensions, model.send_dimensions) == (dimensions, True)
        assert model.revision is None


def test_what_all_aspects_share_is_written_once_and_an_aspects_own_table_goes_first(
    tmp_path: Path,
) -> None:
    settings = _load(
        '[embedding]\nprovider = "openai"\nservice = "ollama"\nmodel = "nomic-embed-text"\n'
        '[aspects.feature]\nprovider = "sentence-transformers"\n'
        f'model = "{MINILM}"\n[aspects.usage]\nmodel = "other"\n',
        tmp_path,
    )
    models = settings.aspects
    assert models[Aspect.DESCRIPTION].model == "nomic-embed-text"
    assert models[Aspect.DESCRIPTION].base_url == "http://localhost:11434/v1"
    assert models[Aspect.USAGE].model == "other"
    assert not models[Aspect.FEATURE].is_remote


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('service = "closedai"', "service 'closedai' is not known: expected one of openai"),
        ('service = "vllm"\nmodel = "m"', "needs a base_url"),
        ('service = "ollama"', "model is missing"),
        ('base_url = "ftp://example.org"', "does not begin with https:// or http://"),
        ('base_url = "https://me:secret@example.org/v1"', "holds an @"),
        ('api_key_variable = "sk-123"', "api_key_variable"),
    ],
)
def test_an_api_that_cannot_be_reached_as_set_is_refused_with_the_file(
    tmp_path: Path, table: str, said: str
) -> None:
    refusal = _refusal(f'[embedding]\nprovider = "openai"\n{table}\n', tmp_path)
    assert said in refusal
    assert str(tmp_path / "ingestion.toml") in refusal
    assert "secret" not in refusal
    assert "sk-123" not in refusal


def test_the_address_of_an_api_is_part_of_the_fingerprint_unless_a_revision_says_more(
    tmp_path: Path,
) -> None:
    def fingerprint(base_url: str, more: str = "") -> str:
        table = f'[embedding]\nprovider = "openai"\nmodel = "m"\nbase_url = "{base_url}"\n{more}'
        return _load(table, tmp_path).fingerprint(Aspect.USAGE)

    here, there = "http://localhost:8000/v1", "http://localhost:9000/v1"
    assert fingerprint(here) != fingerprint(there)
    assert fingerprint(here) == fingerprint("HTTP://LOCALHOST:8000/v1/")
    pinned = 'revision = "of ours"'
    assert fingerprint(here, pinned) == fingerprint(there, pinned) != fingerprint(here)


def test_every_setting_says_what_it_is() -> None:
    settings = _defaults()
    parts = {"catalogue", "ranges", "work", "budget", "disk", "schedule", "aspects"}
    sections = [getattr(settings, part) for part in sorted(parts - {"aspects"})]
    for section in [settings, *sections, settings.aspects[Aspect.USAGE]]:
        assert type(section).__doc__
        for name, field in type(section).model_fields.items():
            assert field.description or name in parts | {"provider"}, name


def test_without_a_file_all_defaults_hold_and_home_is_below_the_working_directory(
    tmp_path: Path,
) -> None:
    settings = load_settings(environ={})
    assert settings.file is None
    assert settings.home == tmp_path / ".ingestion"
    assert settings.database_url is None
    assert settings.catalogue.v2 == "product_embeddings_v2"
    assert [settings.aspects[aspect].model for aspect in Aspect] == [MPNET, MPNET, MINILM]


def test_the_nearest_file_above_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ingestion.toml").write_text("[ranges]\nproducts_per_range = 7\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    settings = load_settings(environ={})
    assert settings.ranges.products_per_range == 7
    assert settings.file == tmp_path / "ingestion.toml"
    assert settings.home == tmp_path / ".ingestion"


def test_the_environment_names_file_home_database_and_cache(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[work]\nlease_seconds = 60\n")
    settings = load_settings(
        environ={
            "INGESTION_SETTINGS": str(file),
            "INGESTION_HOME": str(tmp_path / "home"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "DATABASE_URL": URL,
        }
    )
    assert settings.work.lease_seconds == 60
    assert settings.home == tmp_path / "home"
    assert settings.model_cache == tmp_path / "cache" / "ingestion_pipeline" / "models"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == URL


def test_a_file_that_is_given_wins_over_the_environments(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[ranges]\nproducts_per_range = 1\n")
    settings = _load("[ranges]\nproducts_per_range = 2\n", tmp_path, INGESTION_SETTINGS=str(other))
    assert settings.ranges.products_per_range == 2


def test_paths_are_relative_to_the_file_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = '[catalogue]\nproduct_texts = "shop.sql"\n[aspects.usage]\npath = "/models/m"\n'
    settings = _load(text, tmp_path)
    assert settings.catalogue.product_texts == tmp_path / "shop.sql"
    assert settings.aspects[Aspect.USAGE].path == Path("/models/m")
    assert settings.home == tmp_path / ".ingestion"


def test_a_relative_home_is_below_the_working_directory(tmp_path: Path) -> None:
    settings = load_settings(environ={"INGESTION_HOME": "data"})
    assert settings.home == tmp_path / "data"


def test_an_aspect_keeps_the_defaults_of_what_it_does_not_name(tmp_path: Path) -> None:
    defaults = _defaults()
    settings = _load('[aspects.usage]\nprefix = "usage: "\n', tmp_path)
    assert settings.aspects[Aspect.USAGE].revision == defaults.aspects[Aspect.USAGE].revision
    assert settings.aspects[Aspect.DESCRIPTION] == defaults.aspects[Aspect.DESCRIPTION]
    changed = [
        aspect for aspect in Aspect if settings.fingerprint(aspect) != defaults.fingerprint(aspect)
    ]
    assert changed == [Aspect.USAGE]


def test_another_model_does_not_inherit_the_default_models_revision(tmp_path: Path) -> None:
    settings = _load('[aspects.feature]\nmodel = "another/model"\n', tmp_path)
    assert settings.aspects[Aspect.FEATURE].revision is None
    pinned = _load('[aspects.feature]\nmodel = "another/model"\nrevision = "abc"\n', tmp_path)
    assert pinned.aspects[Aspect.FEATURE].revision == "abc"


def test_where_the_model_lies_does_not_change_what_its_vectors_mean(tmp_path: Path) -> None:
    defaults = _defaults()
    settings = _load('[aspects.usage]\npath = "model"\n', tmp_path)
    assert settings.aspects[Aspect.USAGE].path == tmp_path / "model"
    assert settings.fingerprints == defaults.fingerprints


def test_aspects_of_one_model_share_a_fingerprint_so_that_they_share_vectors() -> None:
    fingerprints = _defaults().fingerprints
    assert fingerprints[Aspect.DESCRIPTION] == fingerprints[Aspect.USAGE]
    assert fingerprints[Aspect.FEATURE] != fingerprints[Aspect.USAGE]


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[ranges]\nproducts_per_range = 0", "ranges.products_per_range", "greater than or equal"),
        ('[ranges]\nproducts_per_range = "many"', "ranges.products_per_range", "valid integer"),
        ("[ranges]\nproducts_per_range = 2.5", "ranges.products_per_range", "integer"),
        ("[work]\nproducts_per_page = 10001", "work.products_per_page", "less than or equal"),
        ("[work]\ntokens_per_batch = 0", "work.tokens_per_batch", "greater than or equal to 1"),
        ("[work]\nlease_seconds = 1", "work.lease_seconds", "greater than or equal to 5"),
        ("[work]\nmax_failed_products = -1", "work.max_failed_products", "greater than or equal"),
        ("[disk]\nfree_bytes = -1", "disk.free_bytes", "greater than or equal to 0"),
        ('[schedule]\ncron = "nightly"', "schedule.cron", "five fields"),
        ('[catalogue]\nproducts = ""', "catalogue.products", "at least 1"),
        ('[catalogue]\nv2 = "a.b.c"', "catalogue.v2", "schema and a table"),
        ('[catalogue]\nv1 = "shop."', "catalogue.v1", "schema and a table"),
        ("[catalogue]\nproduct_texts = 5", "catalogue.product_texts", "path"),
        ("catalogue = 5", "catalogue", "dictionary"),
        ("[catalogue]\nproduct = 'x'", "catalogue.product", "unknown key"),
        ("[range]\nproducts_per_range = 5", "range", "unknown key"),
        ("[aspects.usage]\ndimensions = 0", "aspects.usage.dimensions", "greater than or equal"),
        ("[aspects.usage]\ndimensions = 2001", "aspects.usage.dimensions", "less than or equal"),
        ("[aspects.usage]\nmax_tokens = 1", "aspects.usage.max_tokens", "greater than or equal"),
        ('[aspects.usage]\nmodel = ""', "aspects.usage.model", "at least 1"),
        ('[aspects.usage]\nnormalize = "perhaps"', "aspects.usage.normalize", "boolean"),
        ('[aspects.usage]\nprovider = "nobody"', "aspects.usage.provider", "sentence-transformers"),
        ("[aspects.usage]\ncolour = 1", "aspects.usage.colour", "unknown key"),
        ("[aspects.colour]\nmodel = 'x'", "aspects.colour", "description, usage, feature"),
        ("[aspects]\nusage = 5", "aspects.usage", "table"),
        ("aspects = 5", "aspects", "tables"),
        (f'database_url = "{URL}"', "database_url", "DATABASE_URL"),
        ('home = "/data"', "home", "INGESTION_HOME"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file_its_key_and_what_was_expected(
    text: str, key: str, expected: str, tmp_path: Path
) -> None:
    message = _refusal(text, tmp_path)
    assert message.startswith(f"{tmp_path / 'ingestion.toml'}: {key}")
    assert expected in message
    assert "hunter2" not in message


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    text = "[ranges]\nproducts_per_range = 0\n[work]\nlease_seconds = 0\ncolour = 1\n"
    message = _refusal(text, tmp_path)
    assert len(message.splitlines()) == 3
    assert "ranges.products_per_range" in message
    assert "work.lease_seconds" in message
    assert "work.colour" in message


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    message = _refusal("[ranges]\nproducts_per_range = \n", tmp_path)
    assert str(tmp_path / "ingestion.toml") in message
    assert "line 2" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ingestion.toml"
    file.write_bytes(b"\xff\xfe[ranges]")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(file, {})


@pytest.mark.parametrize("place", ["argument", "environment"])
def test_a_file_that_is_not_there_is_named_and_nothing_else_is_read(
    place: str, tmp_path: Path
) -> None:
    (tmp_path / "ingestion.toml").write_text("")
    missing = tmp_path / "missing.toml"
    file = missing if place == "argument" else None
    environ = {"INGESTION_SETTINGS": str(missing)} if place == "environment" else {}
    with pytest.raises(SettingsError, match=r"missing\.toml"):
        load_settings(file, environ)


def test_settings_cannot_be_changed_once_read() -> None:
    settings = load_settings(environ={})
    with pytest.raises(ValidationError):
        settings.work.lease_seconds = 1


def test_the_password_is_in_no_rendering_of_the_settings() -> None:
    settings = load_settings(environ={"DATABASE_URL": URL})
    for rendering in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in rendering


def test_a_secret_in_the_wrong_place_is_not_printed_with_the_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        _load(f'[catalogue]\ndatabase_url = "{URL}"\n', tmp_path)
    whole = "".join(traceback.format_exception(refused.value))
    assert "catalogue.database_url: unknown key" in whole
    assert "hunter2" not in whole


def test_two_purposes_of_one_table_are_refused(tmp_path: Path) -> None:
    assert "three tables" in _refusal('[catalogue]\nv2 = "product_embeddings"\n', tmp_path)


def test_a_time_that_no_clock_shows_is_refused(tmp_path: Path) -> None:
    refusal = _refusal('[schedule]\ncron = "99 2 * * *"\n', tmp_path)
    assert "schedule.cron" in refusal
    assert "99 is out of range" in refusal

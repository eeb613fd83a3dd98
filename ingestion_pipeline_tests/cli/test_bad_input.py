"""What is wrong before a run: an exit code of its own, words that name it, and nothing written."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from ingestion_pipeline.database.local_server import LocalServer
from ingestion_pipeline.embedding import weights
from ingestion_pipeline.embedding.pinned_models import ALL_MINILM_L6_V2
from ingestion_pipeline_tests.cli.conftest import PROGRAM, Ingest, execute

NO_SERVER = "postgresql://joe:s3cret@127.0.0.1:1/shop"
PRODUCTS = (
    "CREATE TABLE products (id integer PRIMARY KEY, name text, "
    "description text, usage text, features text)"
)
ONE = "INSERT INTO products VALUES (1, 'Coat', 'Warm.', 'Rain.', 'Wool.')"

# Every command that needs the shop's database, and one that writes to it.
NEED_DATABASE = (
    *(["--limit", "5"], ["preflight"], ["status"], ["verify"], ["retry"]),
    *(["failures"], ["search", "coat"]),
)


@pytest.fixture
def settings_file(environment: Path) -> Path:
    return environment / "ingestion.toml"


def _nothing_was_written(url: str) -> bool:
    rows = execute(url, "SELECT to_regnamespace('ingestion'), to_regclass('product_embeddings_v2')")
    return rows == [(None, None)]


# --- options and settings -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_below_one_is_a_usage_error(ingest: Ingest, limit: str) -> None:
    answer = ingest("--limit", limit)
    assert answer.code == 2
    assert "--limit" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    ("toml", "key", "expected"),
    [
        ("[work]\ntokens_per_batch = 0\n", "work.tokens_per_batch", "greater than or equal to 1"),
        ("[aspects.colour]\nmodel = 'x'\n", "aspects.colour", "description, usage, feature"),
        ("[catalogue]\nprodcuts = 'x'\n", "catalogue.prodcuts", "unknown key"),
        ("[catalogue\n", "ingestion.toml", "not valid TOML"),
    ],
)
def test_a_bad_setting_is_named_with_file_key_and_expectation(
    ingest: Ingest, settings_file: Path, toml: str, key: str, expected: str
) -> None:
    settings_file.write_text(toml)
    for command in (["--limit", "5"], ["status"], ["models"], ["env"]):
        answer = ingest(*command)
        assert answer.code == 2
        for words in (str(settings_file), key, expected):
            assert words in answer.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_settings_file_may_be_named_before_and_after_the_command(
    ingest: Ingest, environment: Path, place: str
) -> None:
    option = ["--settings", environment / "none.toml"]
    answer = ingest(*option, "models") if place == "before" else ingest("models", *option)
    assert answer.code == 2
    assert "none.toml" in answer.err


def test_storage_that_dagster_could_not_run_on_is_refused_before_it_tries(
    ingest: Ingest, shop_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql://joe:s3cret@localhost/dagster")
    answer = ingest("--limit", "5")
    assert answer.code == 2
    assert "postgresql+psycopg2://" in answer.err
    assert "s3cret" not in answer.err
    assert _nothing_was_written(shop_url)


def test_a_dagster_home_without_its_yaml_is_refused(
    ingest: Ingest, environment: Path, monkeypatch: pytest.MonkeyPatch, shop_url: str
) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql+psycopg2://localhost/dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(environment))
    answer = ingest("--limit", "5")
    assert answer.code == 2
    assert "no dagster.yaml" in answer.err
    assert _nothing_was_written(shop_url)


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture
def locked_role(server: LocalServer) -> Iterator[str]:
    """A role that needs a password, on a server that otherwise asks for none."""
    rules = server.data_directory / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        rules.write_text("local all locked scram-sha-256\n" + before)
        try:
            connection.execute("SELECT pg_reload_conf()")
            _wait_until_locked(server)
            yield "locked"
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("DROP ROLE locked")


def _wait_until_locked(server: LocalServer) -> None:
    url = server.url("postgres").replace("postgres:@", "locked:@")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return
        time.sleep(0.05)
    raise AssertionError("the server did not take the new rules")


@pytest.mark.usefixtures("dagster")
@pytest.mark.parametrize("command", NEED_DATABASE)
def test_no_server_exits_with_3_and_shows_no_password(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", NO_SERVER)
    answer = ingest(*command, "--json")
    assert answer.code == answer.document["exit_code"] == 3
    assert answer.document["error"]["kind"] == "DatabaseUnavailableError"
    assert "127.0.0.1" in answer.err
    assert "DATABASE_URL" in answer.err
    assert "s3cret" not in answer.err + answer.out


@pytest.mark.parametrize("password", ["wr0ng-s3cret", "p@ss:w0rd/with#signs"])
def test_wrong_credentials_exit_with_3_and_are_not_shown(
    ingest: Ingest, locked_role: str, shop_url: str, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    login = f"{locked_role}:{quote(password, safe='')}@"
    monkeypatch.setenv("DATABASE_URL", shop_url.replace("postgres:@", login))
    answer = ingest("status", "--json")
    assert answer.code == 3
    assert answer.document["error"]["kind"] == "DatabaseRightsError"
    assert f'"{locked_role}"' in answer.err
    for said in (answer.out, answer.err):
        assert password not in said
        assert quote(password, safe="") not in said


@pytest.mark.usefixtures("dagster")
def test_a_missing_extension_comes_with_the_command_for_a_dba(
    ingest: Ingest, shop_url: str
) -> None:
    execute(shop_url, "DROP EXTENSION vector", PRODUCTS, ONE)
    answer = ingest("--limit", "5")
    assert answer.code == 4
    assert "CREATE EXTENSION vector;" in answer.out
    assert "No go" in answer.out
    assert _nothing_was_written(shop_url)


@pytest.mark.usefixtures("dagster")
def test_a_read_only_server_is_refused(ingest: Ingest, shop_url: str) -> None:
    execute(shop_url, PRODUCTS, ONE)
    name = shop_url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
    execute(shop_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    answer = ingest("preflight")
    assert answer.code == 4
    assert "read-only" in answer.out
    assert _nothing_was_written(shop_url)


@pytest.mark.usefixtures("dagster")
def test_a_missing_table_is_named(ingest: Ingest, shop_url: str) -> None:
    answer = ingest("preflight")
    assert answer.code == 4
    assert "There is no table products" in answer.out
    assert "ingest load" in answer.out
    assert _nothing_was_written(shop_url)


@pytest.mark.usefixtures("dagster")
def test_every_reason_is_told_at_once_a_missing_column_and_other_dimensions_too(
    ingest: Ingest, shop_url: str
) -> None:
    execute(
        shop_url,
        "CREATE TABLE products (id integer PRIMARY KEY, name text, description text)",
        """CREATE TABLE product_embeddings_v2 ("productId" integer PRIMARY KEY,
            description_embedding vector(384), usage_embedding vector(768))""",
    )
    answer = ingest("preflight", "--json")
    assert answer.code == answer.document["exit_code"] == 4
    assert answer.document["go"] is False
    [database] = [v for v in answer.document["verdicts"] if v["check"] == "database_connection"]
    messages = " ".join(reason["message"] for reason in database["reasons"])
    assert "products.usage does not exist" in messages
    assert "description_embedding has 384 dimensions, and the settings say 768" in messages
    assert "no column feature_embedding" in messages
    assert all(r["remedy"] for r in database["reasons"] if r["severity"] == "error")
    # The same as text: a mark for each check, a remedy under each reason.
    shown = ingest("--limit", "5")
    assert shown.code == 4
    assert shown.out.count("✗") >= 1
    for reason in database["reasons"]:
        assert f"    {reason['message']}\n    → {reason['remedy']}" in shown.out


@pytest.mark.usefixtures("dagster")
@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("SELEC id FROM products", "syntax error"),
        ("SELECT id AS product_id, 'usage' AS aspect FROM products", "text"),
        ("SELECT id AS product_id, 'colour' AS aspect, name AS text FROM products", "colour"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_mapping_is_named_with_what_is_wrong(
    ingest: Ingest, settings_file: Path, shop_url: str, mapping: str | None, words: str
) -> None:
    execute(shop_url, PRODUCTS, ONE)
    if mapping is not None:
        settings_file.with_name("texts.sql").write_text(f"-- Ours.\n{mapping}\n")
    settings_file.write_text("[catalogue]\nproduct_texts = 'texts.sql'\n")
    answer = ingest("--limit", "5")
    assert answer.code in {2, 4}
    assert "texts.sql" in answer.out + answer.err
    assert words in answer.out + answer.err
    assert _nothing_was_written(shop_url)


# --- the models -----------------------------------------------------------------------------------


@pytest.fixture
def altered_model(environment: Path) -> Path:
    """A model folder with one byte more in one file."""
    cache = weights.default_cache()
    files = weights.fetch(ALL_MINILM_L6_V2.name, revision=None, path=None, cache=cache)
    folder = environment / "model"
    for name in ALL_MINILM_L6_V2.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(files.folder / name)
    vocabulary = folder / "vocab.txt"
    text = vocabulary.read_bytes()
    vocabulary.unlink()
    vocabulary.write_bytes(text + b"\n")
    return folder


@pytest.mark.usefixtures("dagster")
def test_weights_that_are_not_the_pinned_ones_are_named_and_never_used(
    ingest: Ingest, settings_file: Path, altered_model: Path, shop_url: str
) -> None:
    settings_file.write_text(f"[aspects.feature]\npath = '{altered_model}'\n")
    execute(shop_url, PRODUCTS, ONE)
    for command, code in ((["models"], 7), (["models", "--fetch"], 7), (["--limit", "5"], 4)):
        answer = ingest(*command)
        assert answer.code == code, (command, answer)
        assert "vocab.txt" in answer.out + answer.err
    assert execute(shop_url, "SELECT to_regclass('product_embeddings_v2')") == [(None,)] or (
        execute(shop_url, "SELECT count(*) FROM product_embeddings_v2") == [(0,)]
    )


def test_models_say_where_they_are_and_that_they_are_right(ingest: Ingest) -> None:
    answer = ingest("models", "--fetch", "--json")
    assert answer.code == 0
    assert answer.document["ready"] is True
    for aspect, dimensions in (("description", 768), ("usage", 768), ("feature", 384)):
        model = answer.document["aspects"][aspect]
        assert model["dimensions"] == dimensions
        assert model["status"] == "verified"
        assert (Path(model["folder"]) / "model.safetensors").is_file()


def test_missing_models_are_said_to_be_missing_and_how_to_get_them(
    ingest: Ingest, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(environment))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    answer = ingest("models")
    assert answer.code == 7
    assert "missing" in answer.out
    assert "ingest models --fetch" in answer.out


# --- what nobody foresaw --------------------------------------------------------------------------


def test_an_unexpected_error_is_short_redacted_and_kept_in_a_file(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    def explode() -> None:
        raise RuntimeError("boom at postgresql://joe:s3cret@host/shop")

    monkeypatch.setenv("TMPDIR", str(environment))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("ingestion_pipeline.cli.services.down", explode)
    answer = ingest("down")
    assert answer.code == 1
    assert "RuntimeError: boom" in answer.err
    assert len(answer.err.splitlines()) == 2
    [kept] = environment.glob("ingest-error-*.txt")
    assert str(kept) in answer.err
    assert "in explode" in kept.read_text()
    assert "in explode" in ingest("--debug", "down").err
    assert "s3cret" not in answer.err + kept.read_text()


@pytest.mark.usefixtures("environment")
def test_a_reader_who_has_gone_ends_a_command_without_a_word() -> None:
    with subprocess.Popen(
        [PROGRAM, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(60) == 1

"""Counting tokens for a model that runs elsewhere, and cutting texts to a number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from ingestion_pipeline.embedding.token_counts import Estimate, TokenCounts, token_counts
from ingestion_pipeline.errors import SettingsError

SENTENCES = [
    "Harbour coat, waxed, in navy.",
    "Brass kettle of two litres with a wooden handle",
    "Lampe à LED 🌙 für draußen",
    "Ramie rope, zinc pail and 0123456789",
]


@pytest.fixture(scope="module", params=["bytes", "words"])
def tokenizer_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small tokenizer of either kind in use, with truncation and padding baked in."""
    special = ["<s>", "</s>", "<unk>"]
    if request.param == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        pairs = trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet
        )
        made.train_from_iterator(SENTENCES, pairs)
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
        made.train_from_iterator(SENTENCES, pieces)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.enable_truncation(8)
    made.enable_padding(length=64)
    file = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    made.save(str(file))
    return file


@pytest.fixture(scope="module")
def exact(tokenizer_file: Path) -> TokenCounts:
    return token_counts(tokenizer_file)


def test_a_tokenizer_counts_whole_texts_without_padding(tokenizer_file: Path) -> None:
    plain = Tokenizer.from_file(str(tokenizer_file))
    plain.no_truncation()
    plain.no_padding()
    expected = [len(plain.encode(text).ids) for text in SENTENCES]
    assert token_counts(tokenizer_file).count(SENTENCES) == expected
    assert max(expected) > 8


def test_a_folder_with_a_tokenizer_will_do(tokenizer_file: Path) -> None:
    by_folder = token_counts(tokenizer_file.parent).count(SENTENCES)
    assert by_folder == token_counts(tokenizer_file).count(SENTENCES)


def test_what_the_endpoint_reports_changes_no_exact_count(exact: TokenCounts) -> None:
    before = exact.count(SENTENCES)
    exact.learn(10, 1_000)
    assert exact.count(SENTENCES) == before


@given(text=st.text(max_size=80), tokens=st.integers(2, 40))
def test_a_cut_text_fits_and_is_the_beginning_of_the_whole(
    exact: TokenCounts, text: str, tokens: int
) -> None:
    [cut] = exact.cut([text], tokens)
    assert text.startswith(cut)
    assert exact.count([cut])[0] <= tokens
    if exact.count([text])[0] <= tokens:
        assert cut == text


def test_no_more_is_cut_than_has_to_be(exact: TokenCounts) -> None:
    for text in SENTENCES:
        whole = exact.count([text])[0]
        for tokens in range(3, whole):
            [cut] = exact.cut([text], tokens)
            # A character of several tokens, as the moon has four, is kept or left whole.
            assert exact.count([cut])[0] >= tokens - 3


def test_the_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no tokenizer .*tokenizer\.json"):
        token_counts(tmp_path)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(SettingsError, match=r"tokenizer\.json is no tokenizer"):
        token_counts(file)


def test_an_estimate_is_rather_too_many_for_english() -> None:
    # Some four and a half bytes a token with the tokenizers in use.
    text = SENTENCES[1] * 20
    assert token_counts(None).count([text])[0] > len(text) / 4.5


@given(text=st.text(max_size=200), tokens=st.integers(1, 50))
def test_an_estimated_cut_is_by_bytes_and_at_a_characters_end(text: str, tokens: int) -> None:
    [cut] = Estimate().cut([text], tokens)
    assert text.startswith(cut)
    assert len(cut.encode()) <= 3 * tokens
    if len(text.encode()) <= 3 * tokens:
        assert cut == text


@pytest.mark.parametrize("bytes_per_token", [1.5, 4.0, 8.0])
def test_an_estimate_comes_to_what_is_reported(bytes_per_token: float) -> None:
    estimate = Estimate()
    text = "x" * 400
    for _ in range(60):
        [counted] = estimate.count([text])
        estimate.learn(counted, round(400 / bytes_per_token))
    assert estimate.count([text])[0] == pytest.approx(400 / bytes_per_token, rel=0.05, abs=3)


@pytest.mark.parametrize("reported", [0, -5, 1, 10**9])
def test_nonsense_that_is_reported_does_not_lead_far_astray(reported: int) -> None:
    estimate = Estimate()
    for _ in range(100):
        estimate.learn(estimate.count(["x" * 400])[0], reported)
    assert 400 / 20 <= estimate.count(["x" * 400])[0] <= 400 + 3

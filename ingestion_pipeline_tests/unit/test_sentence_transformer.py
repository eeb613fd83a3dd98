"""The reference engine on the real models, and the validation of answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingestion_pipeline.embedding import pinned_models, sentence_transformer, weights
from ingestion_pipeline.embedding.embedder import Embedder, Embeddings, validate
from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    InvalidAnswerError,
    SettingsError,
    WeightsError,
)

TEXTS = [
    "Harbour coat. Waxed cotton, taped seams and a storm flap for weather that will not settle.",
    "Brass kettle",
    "Lampe de bureau à LED, bras articulé, lumière réglable 🌙",
    # Longer than the 128 tokens that tokenizer.json would cut to, shorter than either model's end.
    "A folding bicycle for trains and lifts. " * 20,
    # Longer than either model's end.
    "hinge " * 600,
]


def folder_of(pin: pinned_models.PinnedModel) -> Path:
    cache = weights.default_cache()
    return weights.fetch(pin.name, revision=None, path=None, cache=cache).folder


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    pin = pinned_models.ALL_MINILM_L6_V2
    return SentenceTransformerEmbedder(folder_of(pin), dimensions=pin.dimensions)


@pytest.mark.parametrize("pin", [pinned_models.ALL_MPNET_BASE_V2, pinned_models.ALL_MINILM_L6_V2])
def test_vectors_and_token_counts_are_those_of_sentence_transformers(
    pin: pinned_models.PinnedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = folder_of(pin)
    plain = SentenceTransformer(str(folder), device="cpu")
    expected = plain.encode(TEXTS)
    capfd.readouterr()

    embedder: Embedder = SentenceTransformerEmbedder(
        folder, dimensions=pin.dimensions, max_tokens=pin.max_tokens, device="cpu"
    )
    answer = embedder.embed(TEXTS)
    assert capfd.readouterr() == ("", "")

    assert answer.vectors.dtype == np.float32
    assert answer.vectors.shape == (len(TEXTS), pin.dimensions)
    assert np.allclose(np.linalg.norm(answer.vectors, axis=1), 1, atol=1e-6)
    assert np.sum(answer.vectors * expected, axis=1).min() > 0.9999
    seen = [int(plain.preprocess([text])["attention_mask"].sum()) for text in TEXTS]
    assert answer.tokens == seen == embedder.count_tokens(TEXTS)
    assert answer.tokens[-1] == pin.max_tokens
    assert answer.truncated == [False, False, False, False, True]
    assert validate(answer, expected_count=len(TEXTS), dimensions=pin.dimensions) == []


def test_a_text_as_long_as_the_limit_is_whole_and_one_token_more_is_cut() -> None:
    pin = pinned_models.ALL_MINILM_L6_V2
    embedder = SentenceTransformerEmbedder(
        folder_of(pin), dimensions=pin.dimensions, max_tokens=12, device="cpu"
    )
    # Two special tokens come on top of one token a word.
    fits, over, far_over = "red " * 10, "red " * 11, "red " * 300
    answer = embedder.embed([fits, over, far_over])
    assert answer.tokens == [12, 12, 12]
    assert answer.truncated == [False, True, True]
    assert np.allclose(answer.vectors[0], answer.vectors[1], atol=1e-5)
    assert np.allclose(answer.vectors[0], answer.vectors[2], atol=1e-5)


def test_the_prefix_is_embedded_and_counted(minilm: SentenceTransformerEmbedder) -> None:
    pin = pinned_models.ALL_MINILM_L6_V2
    prefixed = SentenceTransformerEmbedder(
        folder_of(pin), dimensions=pin.dimensions, prefix="passage: "
    )
    by_prefix = prefixed.embed(TEXTS[:2])
    by_hand = minilm.embed([f"passage: {text}" for text in TEXTS[:2]])
    assert np.allclose(by_prefix.vectors, by_hand.vectors, atol=1e-5)
    assert by_prefix.tokens == by_hand.tokens == prefixed.count_tokens(TEXTS[:2])
    assert not np.allclose(by_prefix.vectors, minilm.embed(TEXTS[:2]).vectors, atol=1e-2)


def test_vectors_that_are_not_normalised_differ_in_length_only(
    minilm: SentenceTransformerEmbedder,
) -> None:
    pin = pinned_models.ALL_MINILM_L6_V2
    raw = SentenceTransformerEmbedder(
        folder_of(pin), dimensions=pin.dimensions, normalize=False
    ).embed(TEXTS)
    lengths = np.linalg.norm(raw.vectors, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.5).all()
    assert np.allclose(raw.vectors / lengths, minilm.embed(TEXTS).vectors, atol=1e-5)
    assert validate(raw, expected_count=len(TEXTS), dimensions=pin.dimensions) == []


def test_a_vector_does_not_depend_on_its_neighbours_or_their_order(
    minilm: SentenceTransformerEmbedder,
) -> None:
    together = minilm.embed(TEXTS).vectors
    backwards = minilm.embed(TEXTS[::-1]).vectors[::-1]
    alone = np.concatenate([minilm.embed([text]).vectors for text in TEXTS])
    assert np.allclose(together, backwards, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_rows(minilm: SentenceTransformerEmbedder) -> None:
    answer = minilm.embed([])
    assert answer.vectors.shape == (0, 384)
    assert answer.vectors.dtype == np.float32
    assert (answer.tokens, answer.truncated, minilm.count_tokens([])) == ([], [], [])
    assert validate(answer, expected_count=0, dimensions=384) == []


def test_dimensions_that_the_model_does_not_give_are_refused() -> None:
    folder = folder_of(pinned_models.ALL_MINILM_L6_V2)
    with pytest.raises(SettingsError, match="set dimensions = 384"):
        SentenceTransformerEmbedder(folder, dimensions=768)


@pytest.mark.parametrize("max_tokens", [0, 2, 257])
def test_more_tokens_than_the_model_takes_or_too_few_are_refused(max_tokens: int) -> None:
    folder = folder_of(pinned_models.ALL_MINILM_L6_V2)
    with pytest.raises(SettingsError, match="from 3 to 256 tokens"):
        SentenceTransformerEmbedder(folder, dimensions=384, max_tokens=max_tokens)


def test_a_folder_without_a_model_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no model folder"):
        SentenceTransformerEmbedder(tmp_path / "none", dimensions=384)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        SentenceTransformerEmbedder(tmp_path, dimensions=384)
    for file in folder_of(pinned_models.ALL_MINILM_L6_V2).rglob("*.*"):
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        SentenceTransformerEmbedder(tmp_path, dimensions=384)


def test_importing_the_engine_imports_neither_torch_nor_sentence_transformers() -> None:
    script = (
        "import sys; import ingestion_pipeline.embedding.sentence_transformer, "
        "ingestion_pipeline.embedding.weights; "
        "print({'torch', 'numpy', 'sentence_transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# --- memory ---------------------------------------------------------------------------------------

_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from ingestion_pipeline.embedding.sentence_transformer import SentenceTransformerEmbedder
from ingestion_pipeline.errors import BatchTooLargeError, OutOfMemoryError
from ingestion_pipeline_tests.faults.tight_memory import allow_more

def load():
    return SentenceTransformerEmbedder(Path(sys.argv[1]), dimensions=384, device="cpu")

embedder = load()
before = embedder.embed(["a cup"]).vectors
allow_more(60)
try:
    embedder.embed(["soft " * 250] * 64)
except BatchTooLargeError as error:
    print(error)
same = (embedder.embed(["a cup"]).vectors == before).all()
print("a smaller batch is answered" if same else "another vector")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
del embedder
allow_more(8)
try:
    load()
except OutOfMemoryError as error:
    print(error)
"""


def test_a_process_without_memory_says_so_for_a_batch_and_for_a_model_and_goes_on() -> None:
    folder = folder_of(pinned_models.ALL_MINILM_L6_V2)
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_A_LIMIT, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    batch, smaller, model = done.stdout.splitlines()
    assert batch.startswith("There is no memory on cpu for 64 texts at once: ")
    assert smaller == "a smaller batch is answered"
    assert model.startswith(f"There is no memory on cpu to load the model in {folder}: ")


def _of_torch() -> None:
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def _of_numpy() -> None:
    np.empty(1 << 60, dtype=np.uint8)


def _of_cuda() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _of_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("fails", [_of_torch, _of_numpy, _of_cuda, _of_cublas])
def test_each_way_of_having_no_memory_is_a_batch_that_is_too_large_and_holds_nothing(
    minilm: SentenceTransformerEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[], None],
) -> None:
    import torch

    class Activations:
        """What a forward pass has on the device when it fails."""

    held: list[weakref.ref[Activations]] = []
    emptied: list[bool] = []

    def forward(_texts: Sequence[str]) -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        fails()

    monkeypatch.setattr(minilm, "device", "cuda:0")
    monkeypatch.setattr(minilm, "_forward", forward)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[0]() is None))
    with pytest.raises(BatchTooLargeError, match="no memory on cuda:0 for 2 texts"):
        minilm.embed(TEXTS[:2])
    assert emptied == [True], "the cache is emptied once nothing of the batch is held any more"


def test_another_fault_of_the_engine_is_not_taken_for_want_of_memory(
    minilm: SentenceTransformerEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(_texts: Sequence[str]) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(minilm, "_forward", forward)
    with pytest.raises(RuntimeError, match="shapes"):
        minilm.embed(TEXTS[:2])


def test_long_texts_are_counted_a_few_at_a_time_and_come_out_in_order(
    minilm: SentenceTransformerEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = minilm.count_tokens(TEXTS)
    monkeypatch.setattr(sentence_transformer, "_CHARACTERS_AT_ONCE", 30)
    assert minilm.count_tokens(TEXTS) == whole
    groups = list(sentence_transformer._of_at_most(5, ["aa", "bb", "cc", "much longer", "", "d"]))
    assert groups == [["aa", "bb"], ["cc"], ["much longer"], ["", "d"]]


# --- validating answers ---------------------------------------------------------------------------


def answer_of(count: int = 4, dimensions: int = 3) -> Embeddings:
    vectors = np.ones((count, dimensions), dtype=np.float32)
    return Embeddings(vectors, tokens=[5] * count, truncated=[False] * count)


def test_an_answer_of_the_wrong_count_is_not_believed() -> None:
    for count in (3, 5):
        with pytest.raises(InvalidAnswerError, match="4 texts were sent"):
            validate(answer_of(count), expected_count=4, dimensions=3)
    good = answer_of()
    for short in (
        Embeddings(good.vectors, good.tokens[1:], good.truncated),
        Embeddings(good.vectors, good.tokens, good.truncated[1:]),
    ):
        with pytest.raises(InvalidAnswerError, match="4 texts were sent"):
            validate(short, expected_count=4, dimensions=3)


def test_an_answer_of_the_wrong_dimensions_or_type_is_not_believed() -> None:
    with pytest.raises(InvalidAnswerError, match="3 dimensions"):
        validate(answer_of(dimensions=4), expected_count=4, dimensions=3)
    good = answer_of()
    flat = Embeddings(good.vectors[:, 0], good.tokens, good.truncated)
    with pytest.raises(InvalidAnswerError, match="3 dimensions"):
        validate(flat, expected_count=4, dimensions=3)
    half: Any = good.vectors.astype(np.float16)
    with pytest.raises(InvalidAnswerError, match="got float16"):
        validate(Embeddings(half, good.tokens, good.truncated), expected_count=4, dimensions=3)


def test_bad_rows_are_told_and_their_neighbours_kept() -> None:
    answer = answer_of(6)
    answer.vectors[1, 2] = np.nan
    answer.vectors[2] = 0
    answer.vectors[3, 0] = -np.inf
    answer.vectors[4] = 1e-9
    answer.vectors[5] = 1e30  # finite, and so is its length, though not its square in float32
    assert validate(answer, expected_count=6, dimensions=3) == [1, 2, 3, 4]

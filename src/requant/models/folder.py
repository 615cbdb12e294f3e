"""The files of a Hugging Face model folder that are not weights."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.outside.json_text import read_object
from requant.store.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
"""peft's; transformers loads an adapter that lies in a model's folder into the model."""
MERGE_NAME = "merge.json"
"""What merging did to each tensor."""
PROVENANCE_NAME = "provenance.json"
CALIBRATION_NAME = "calibration.json"
MASTER_NAME = "master.json"
"""In which dtype a model is served that is kept in float32 to be trained on."""
QUANTIZATION_NAME = "quantization.json"
"""What quantization did to each weight."""
CORRECTION_NAME = "eora"
"""Folder of a LoRA beside a quantized model, which is part of it: `requant.quantization.eora`."""
CARD_NAME = "README.md"
NOTES = frozenset(
    {
        *{MANIFEST_NAME, MERGE_NAME, PROVENANCE_NAME, CALIBRATION_NAME, MASTER_NAME},
        *{QUANTIZATION_NAME, CARD_NAME},
    }
)
"""What is true of one artifact and not of what is made from it."""

WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"})
"""Suffixes of weights: a copy of them would be served unchanged beside the new ones."""

VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""What a tokenizer without a tokenizer.json is read from. The digest of a tokenizer names them."""
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        *VOCABULARY_FILES,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
)
"""All that belongs to a tokenizer, and is replaced together."""


def copy_companions(source: Path, out: Path, *, with_index: bool) -> None:
    """Copy config, tokenizer, chat template and generation config, byte for byte.

    Args:
        source: Model folder or artifact.
        out: Existing folder; files of the same name are replaced.
        with_index: Whether the shard index still describes the weights in `out`.
    """
    skipped = NOTES if with_index else NOTES | {INDEX_NAME}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in WEIGHTS and path.name not in skipped:
            shutil.copyfile(path, out / path.name)


def stored_dtype(folder: Path) -> "torch.dtype":
    """Return the floating dtype that most weights of a folder are stored in.

    Not that of the first tensor: norms of a 16-bit model may be in float32.

    Raises:
        ContractError: If none is floating-point.
    """
    import torch

    from requant.models.headers import TORCH_NAMES, read_headers

    numbers: Counter[str] = Counter()
    for header in read_headers(folder).values():
        numbers[header.dtype] += math.prod(header.shape)
    floating = [name for name, _ in numbers.most_common() if name in TORCH_NAMES]
    if not floating:
        raise ContractError(
            f"{folder}: its weights are {', '.join(numbers) or 'none'}; expected one of "
            f"{', '.join(TORCH_NAMES)}"
        )
    return getattr(torch, TORCH_NAMES[floating[0]])


def served_dtype(folder: Path) -> str:
    """Return the torch name of the dtype a model is served in: float32 is for training alone."""
    note = folder / MASTER_NAME
    if note.exists():
        return str(read_object(note)["dtype"])
    stored = str(stored_dtype(folder)).removeprefix("torch.")
    return "bfloat16" if stored in {"float32", "float64"} else stored


def set_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Change fields of config.json; where there are none its bytes stay."""
    if not fields:
        return
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        # transformers 5 writes `dtype` and reads `torch_dtype` too; keep what is there.
        spelled = "torch_dtype" if name == "dtype" and "torch_dtype" in config else name
        config[spelled] = value
    path.write_text(json.dumps(config, indent=2) + "\n")


def copy_tokenizer(source: Path, out: Path) -> None:
    """Replace the tokenizer and chat template in `out`."""
    for name in TOKENIZER_FILES:
        (out / name).unlink(missing_ok=True)
    for path in sorted(source.iterdir()):
        if path.name in TOKENIZER_FILES:
            shutil.copyfile(path, out / path.name)

"""Weights files by their headers: names, dtypes and shapes, without a tensor being loaded."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ArtifactError
from requant.json_file import read_object
from requant.models.config import quantization_of
from requant.models.folder import INDEX_NAME
from requant.wording import shown

Shape = tuple[int, ...]

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SAFETENSORS = re.compile(r"[^/\\\0]+\.safetensors")
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the floating dtypes that weights are stored in, and torch's."""
SAFETENSORS_NAMES = {name: short for short, name in TORCH_NAMES.items()}
NF4_STATE = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file, without its data."""

    file: Path
    dtype: str
    shape: Shape
    start: int
    """Where the data lies, bytes from the start of the file."""
    end: int


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of all *.safetensors of a folder.

    Format: 8 bytes little-endian length, that many bytes of JSON, then the data
    (https://github.com/huggingface/safetensors#format).

    Raises:
        ArtifactError: If there is no weights file, or one is cut short.
    """
    files = weight_files(folder)
    if not files:
        index = folder / INDEX_NAME
        if index.exists():
            raise ArtifactError(
                f"{index}: names files of which none is beside it; copy the missing shards"
            )
        other = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        raise ArtifactError(
            f"{folder}: holds no *.safetensors that transformers loads (model.safetensors, or "
            f"model-00001-of-0000N.safetensors{f'; found {other}' if other else ''}); save the "
            "weights with save_pretrained (requant reads no pickles)"
        )
    return headers_of(files)


def headers_of(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """Read the headers of weights files; tensor name to header."""
    return {
        name: header for file in files for name, header in read_shard_header(file).tensors.items()
    }


def weight_files(folder: Path) -> list[Path]:
    """List the files transformers loads: model.safetensors, else those of the index.

    Shards that lost their index are taken where they are numbered and all there. Some folders hold
    the same weights a second time under another name, or an adapter.
    """
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if single.exists():
        return [single]
    found = sorted(folder.glob("*.safetensors"))
    named = set(read_index(folder).values()) if index.exists() else set()
    if not index.exists():
        shards, lacking = numbered_shards(path.name for path in found)
        named = set() if lacking else set(shards)
    return [path for path in found if path.name in named]


def numbered_shards(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the shards `model-00001-of-00003.safetensors` among names, and those that lack."""
    shards = [name for name in names if SHARD.fullmatch(name)]
    wanted = {
        f"model-{number:05}-of-{total}.safetensors"
        for total in {name.partition("-of-")[2].partition(".")[0] for name in shards}
        for number in range(1, int(total) + 1)
    }
    return sorted(shards), sorted(wanted - set(shards))


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name to file name as a folder's shard index has it.

    Raises:
        ArtifactError: If the index is no JSON object with a weight_map, or names another file than
            a *.safetensors beside it: transformers would load a pickle, or from elsewhere.
    """
    path = folder / INDEX_NAME
    files = read_object(path).get("weight_map")
    if not isinstance(files, dict):
        raise ArtifactError(f"{path}: has no weight_map; copy it anew")
    for tensor, name in files.items():
        if not isinstance(name, str) or not SAFETENSORS.fullmatch(name):
            raise ArtifactError(
                f"{path}: {shown(tensor)} is in {shown(name)}, which is no *.safetensors beside "
                "it; save the model anew with save_pretrained"
            )
    return files


@dataclass(frozen=True)
class ShardHeader:
    """The header of one safetensors file."""

    raw: bytes
    """The bytes of the header as they lie in the file, their length before them."""
    entries: Mapping[str, Any]
    """The header parsed; `__metadata__` among the tensors."""
    tensors: Mapping[str, TensorHeader]
    """Name to tensor, in the order of their data in the file."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the writer noted, e.g. {"format": "pt"}."""
        found: Mapping[str, str] = self.entries.get("__metadata__", {})
        return found


def read_shard_header(path: Path) -> ShardHeader:
    """Read the header of one safetensors file; see `read_headers`.

    Raises:
        ArtifactError: If the file is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{path}: is cut short or no safetensors file; copy it anew") from error
    if not isinstance(entries, dict):
        raise ArtifactError(f"{path}: is no safetensors file; copy it anew")
    start = 8 + length
    try:
        tensors = {
            name: TensorHeader(
                file=path,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=start + entry["data_offsets"][0],
                end=start + entry["data_offsets"][1],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: its header is damaged ({error!r}); copy it anew") from error
    needed = max((header.end for header in tensors.values()), default=start)
    if size < needed:
        raise ArtifactError(f"{path}: is cut short: {size} bytes of {needed}; copy it anew")
    in_order = dict(sorted(tensors.items(), key=lambda item: item[1].start))
    return ShardHeader(prefix + text, entries, in_order)


def logical_shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes a model's tensors have before they are packed.

    NF4 keeps the shape in the quant_state entry beside the packed weight; int8 keeps it; GPTQ's
    `qweight` is int32 [in_features * bits / 32, out_features].

    Returns:
        Tensor name of the unquantized model to shape, without the output layer where it is tied
        to the embedding.
    """
    headers = read_headers(folder)
    method = quantization_of(dict(config))
    if method == "gptq":
        shapes = _gptq_shapes(headers, config["quantization_config"]["bits"])
    elif method in {"nf4", "int8"}:
        shapes = _bitsandbytes_shapes(headers)
    else:
        shapes = {name: header.shape for name, header in headers.items()}
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    return shapes


def _bitsandbytes_shapes(headers: Mapping[str, TensorHeader]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, header in headers.items():
        owner = name.partition(".weight.")[0] + ".weight"
        if name.endswith(NF4_STATE):
            shapes[owner] = tuple(json.loads(_data(header))["shape"])
        elif ".weight." in name or name.endswith((".SCB", ".weight_format")):
            continue
        elif name + NF4_STATE not in headers:
            shapes[name] = header.shape
    return shapes


def _gptq_shapes(headers: Mapping[str, TensorHeader], bits: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, header in headers.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            rows, columns = header.shape
            shapes[f"{module}.weight"] = (columns, rows * 32 // bits)
        elif f"{module}.qweight" not in headers or leaf == "bias":
            shapes[name] = header.shape
    return shapes


def _data(header: TensorHeader) -> bytes:
    with header.file.open("rb") as file:
        file.seek(header.start)
        return file.read(header.end - header.start)

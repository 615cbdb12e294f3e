"""Weights files by their headers: names, dtypes and shapes, without a tensor being loaded."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ArtifactError
from requant.models.config import quantization_of
from requant.models.folder import INDEX_NAME
from requant.outside.files import open_plain
from requant.outside.json_text import INDEX, Bounds, MalformedJson, parse_json, read_object
from requant.wording import data_size, shown

Shape = tuple[int, ...]

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SAFETENSORS = re.compile(r"[^/\\\0]+\.safetensors")
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the floating dtypes that weights are stored in, and torch's."""
SAFETENSORS_NAMES = {name: short for short, name in TORCH_NAMES.items()}
HEADER = Bounds(size=100_000_000, depth=8, entries=10_000_000)
"""safetensors' own limit of a header's bytes; its levels are four."""
QUANT_STATE = Bounds(size=1 << 16, depth=8, entries=1000)
MAX_NUMBER = 1 << 63
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}
"""Bits of a number in each dtype of safetensors."""
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
    files = read_object(path, INDEX).get("weight_map")
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
        found: Mapping[str, str] = self.entries.get("__metadata__") or {}
        return found


def _check_notes(path: Path, notes: Any) -> None:
    """Refuse notes of the writer that safetensors would stop at, when the tensors are read."""
    texts = notes is None or (
        isinstance(notes, dict) and all(isinstance(value, str) for value in notes.values())
    )
    if not texts:
        raise _damaged(path, f"__metadata__ is {shown(notes)}; expected an object of texts")


def read_shard_header(path: Path) -> ShardHeader:
    """Read the header of one safetensors file, and check all it says; see `read_headers`.

    The data of the tensors lies without gap or overlap to the end of the file.

    Raises:
        ArtifactError: Naming the file, if it is cut short, or a tensor whose dtype, shape and place
            in the file do not fit each other.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        text = file.read(length) if length <= min(size - 8, HEADER.size) else b""
    if length > HEADER.size and 8 + length <= size:
        raise ArtifactError(
            f"{path}: is no safetensors file: its header would have {data_size(length)}; copy it "
            "anew"
        )
    try:
        entries = parse_json(text, HEADER)
    except MalformedJson as error:
        why = f" ({error})" if text else ""
        raise ArtifactError(
            f"{path}: is cut short or no safetensors file{why}; copy it anew"
        ) from error
    if not isinstance(entries, dict):
        raise ArtifactError(f"{path}: is no safetensors file; copy it anew")
    start = 8 + length
    _check_notes(path, entries.get("__metadata__"))
    tensors = {
        name: _tensor(path, name, entry, start)
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    needed = max((header.end for header in tensors.values()), default=start)
    if size < needed:
        raise ArtifactError(f"{path}: is cut short: {size} bytes of {needed}; copy it anew")
    in_order = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    place = start
    for name, header in in_order.items():
        if header.start != place:
            raise _damaged(path, f"{shown(name)} begins at byte {header.start}, not at {place}")
        place = header.end
    if place != size:
        raise _damaged(path, f"{size - place} bytes follow its last tensor")
    return ShardHeader(prefix + text, entries, in_order)


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorHeader:
    """Check one entry of a header: the shape's numbers in the dtype are the bytes it takes."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        first, end = entry["data_offsets"]
        numbers = [*shape, first, end]
        if not all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers):
            raise ValueError("a number is negative, too large or none")
        bits = math.prod(shape) * BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{shown(name)} is {shown(entry)}") from error
    if bits != 8 * (end - first):
        raise _damaged(
            path,
            f"{shown(name)} has shape {shown(shape)} in {dtype}, {-(-bits // 8)} bytes, and takes "
            f"{end - first}",
        )
    return TensorHeader(path, dtype, tuple(shape), start + first, start + end)


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path}: its header is damaged: {why}; copy it anew")


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
            shapes[owner] = _packed_shape(name, header)
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
            if len(header.shape) != 2:
                raise _damaged(header.file, f"{shown(name)} has shape {list(header.shape)}")
            rows, columns = header.shape
            shapes[f"{module}.weight"] = (columns, rows * 32 // bits)
        elif f"{module}.qweight" not in headers or leaf == "bias":
            shapes[name] = header.shape
    return shapes


def _packed_shape(name: str, header: TensorHeader) -> Shape:
    """Read the shape that bitsandbytes keeps, as JSON, beside a weight it packed."""
    if header.end - header.start > QUANT_STATE.size:
        raise _damaged(header.file, f"{shown(name)} has {header.end - header.start} bytes")
    try:
        shape = parse_json(_data(header), QUANT_STATE)["shape"]
    except (MalformedJson, KeyError, TypeError) as error:
        raise _damaged(header.file, f"{shown(name)} holds no shape") from error
    if not isinstance(shape, list) or not all(type(number) is int for number in shape):
        raise _damaged(header.file, f"{shown(name)} holds the shape {shown(shape)}")
    return tuple(shape)


def _data(header: TensorHeader) -> bytes:
    with header.file.open("rb") as file:
        file.seek(header.start)
        return file.read(header.end - header.start)

"""compressed-tensors' pack-quantized format, which vLLM and transformers read, by its own package.

Of a quantized layer it holds weight_packed (int32, n = q - z of 4 or 8 bits), weight_scale (float16
[out, groups]) and weight_shape; where n does not fit, q is packed and z is weight_zero_point.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.execution.stage import Reporter
from requant.exporting.codes import (
    Codes,
    check_contiguous,
    modules_of,
    read_codes,
    read_gptq,
    steps_within,
)
from requant.models.folder import INDEX_NAME, copy_companions
from requant.models.headers import headers_of, weight_files
from requant.models.skeleton import empty_model, read_causal_config
from requant.quantization.dequantize import QuantizedFolder
from requant.quantization.gptq_layout import PARTS
from requant.quantization.quantizable import file_name

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs

OTHER_FORMAT = "quantize_config.json"
"""GPTQ's own settings: beside these weights they would be wrong."""


def write_compressed(model: Path, out: Path, reporter: Reporter) -> dict[str, int]:
    """Write a GPTQ model as compressed-tensors, in files of the same names.

    Args:
        model: GPTQ folder.
        out: Existing empty folder.
        reporter: Hears how far it is.

    Returns:
        Name of the scheme (W4A16, W8A16; _asymmetric) -> layers written by it.

    Raises:
        ContractError: If the format cannot hold the model exactly, naming what and the way out.
    """
    quantized = read_gptq(model)
    check_contiguous(quantized, "compressed-tensors (0.20)")
    modules = modules_of(quantized)
    args = _args(quantized, modules)
    copy_companions(model, out, with_index=False)
    (out / OTHER_FORMAT).unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_bytes())
    settings = _settings(args, _left_out(model, quantized))
    _write(out / "config.json", {**config, "quantization_config": settings})
    _write_weights(model, out, quantized, args, reporter)
    kind = f"W{args.num_bits}A16" + ("" if args.symmetric else "_asymmetric")
    return {kind: len(modules)}


def _args(quantized: QuantizedFolder, modules: list[str]) -> "QuantizationArgs":
    """Choose the one scheme of all layers: the bits that vLLM has kernels for are 4 and 8."""
    from compressed_tensors.quantization import QuantizationArgs

    bits = 4 if int(quantized.settings["bits"]) <= 4 else 8
    group = int(quantized.settings["group_size"])
    return QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=all(steps_within(read_codes(quantized, module), bits) for module in modules),
        strategy="channel" if group == -1 else "group",
        group_size=None if group == -1 else group,
    )


def _settings(args: "QuantizationArgs", left_out: list[str]) -> dict[str, Any]:
    from compressed_tensors import __version__
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
    )

    settings = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=left_out,
    )
    return {**settings.model_dump(mode="json"), "version": __version__}


def _left_out(model: Path, quantized: QuantizedFolder) -> list[str]:
    """List the linear layers of the network that are not quantized."""
    from torch.nn import Linear

    network = empty_model(read_causal_config(model))
    weights = {f"{module}.weight" for module in modules_of(quantized)}
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, Linear)
        and file_name(name, network.base_model_prefix, weights) is None
    ]


def packed(codes: Codes, args: "QuantizationArgs") -> dict[str, "torch.Tensor"]:
    """Return the tensors of a layer by the names that follow its own."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    middle = 1 << (args.num_bits - 1)
    signed = codes.steps if args.symmetric else codes.codes - middle
    found = {
        "weight_packed": pack_to_int32(signed.to(torch.int8), args.num_bits),
        "weight_scale": codes.scales,
        "weight_shape": torch.tensor(codes.codes.shape),
    }
    if not args.symmetric:
        points = (codes.points - middle).to(torch.int8)
        found["weight_zero_point"] = pack_to_int32(points, args.num_bits, packed_dim=0)
    return found


def _write_weights(
    model: Path,
    out: Path,
    quantized: QuantizedFolder,
    args: "QuantizationArgs",
    reporter: Reporter,
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = weight_files(model)
    modules = set(modules_of(quantized))
    places: dict[str, str] = {}
    for done, shard in enumerate(shards, 1):
        tensors: dict[str, Any] = {}
        with safe_open(shard, framework="pt") as file:
            for name in sorted(file.keys()):
                module, _, part = name.rpartition(".")
                if module not in modules or part not in PARTS:
                    tensors[name] = file.get_tensor(name)
                elif part == "qweight":
                    layer = packed(read_codes(quantized, module), args)
                    tensors |= {f"{module}.{key}": tensor for key, tensor in layer.items()}
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        # The library lets nobody but the owner read it; who serves may be another user.
        shutil.copymode(out / "config.json", out / shard.name)
        places |= dict.fromkeys(tensors, shard.name)
        reporter.progress(done, len(shards), "shards")
    if len(shards) > 1:
        written = headers_of(out / shard.name for shard in shards).values()
        size = sum(header.end - header.start for header in written)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        _write(out / INDEX_NAME, index)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

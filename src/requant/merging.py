"""Merge a LoRA or DoRA adapter into 16-bit weights: fp32 arithmetic, rounded once, by shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError, ParityError

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
"""peft's name for the wrapped model inside adapter files."""


@dataclass(frozen=True)
class LowRankUpdate:
    """What an adapter does to one weight W [out, in]: W + scale * B A, then DoRA's magnitude."""

    a: "torch.Tensor"
    """[rank, in], any floating dtype."""
    b: "torch.Tensor"
    """[out, rank]."""
    scale: float
    """alpha / rank."""
    magnitude: "torch.Tensor | None" = None
    """[out], DoRA only."""


def merge_update(weight: "torch.Tensor", update: LowRankUpdate) -> "torch.Tensor":
    """Apply one update in fp32, without rounding.

    LoRA: W + s B A (arXiv:2106.09685). DoRA: m (W + s B A) / ||W + s B A||, the norm over each
    output row (arXiv:2402.09353, eq. 5; peft 0.21 tuners/lora/dora.py).

    Args:
        weight: [out, in], any floating dtype.
        update: Of this weight.

    Returns:
        float32 [out, in].
    """
    merged = weight.float() + update.scale * (update.b.float() @ update.a.float())
    if update.magnitude is None:
        return merged
    norm = merged.norm(dim=1)
    return (update.magnitude.float() / norm).unsqueeze(1) * merged


def read_updates(adapter: Path) -> dict[str, LowRankUpdate]:
    """Read a peft LoRA or DoRA folder.

    Returns:
        Weight name in the base model, e.g. `model.layers.0.mlp.up_proj.weight`, to its update.

    Raises:
        ContractError: On an adapter type or option whose merge is not this formula.
    """
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    _check_type(config)
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    modules = sorted({name.partition(".lora_")[0] for name in tensors if ".lora_" in name})
    strangers = [name for name in tensors if ".lora_" not in name]
    if strangers:
        raise ContractError(
            f"adapter: {len(strangers)} tensors are not LoRA factors, e.g. {strangers[0]}; fully "
            "trained modules cannot be merged yet: train with linear target_modules only"
        )
    updates = {}
    for module in modules:
        a, b = tensors.get(f"{module}.lora_A.weight"), tensors.get(f"{module}.lora_B.weight")
        magnitude = tensors.get(f"{module}.lora_magnitude_vector")
        if a is None or b is None or (config.get("use_dora") and magnitude is None):
            raise ContractError(
                f"adapter: {module} lacks lora_A, lora_B or, for DoRA, its magnitude; "
                "the file is incomplete: run train_adapter again"
            )
        updates[f"{module.removeprefix(PREFIX)}.weight"] = LowRankUpdate(a, b, scale, magnitude)
    if not updates:
        raise ContractError("adapter: adapter_model.safetensors has no lora_A/lora_B pair")
    return updates


def merge_folder(
    base: Path, updates: dict[str, LowRankUpdate], dtype: "torch.dtype", out: Path
) -> dict[str, float]:
    """Write the merged weights of `base` to `out`, keeping its shard layout and metadata.

    A tensor without an update is written bit for bit when it has `dtype` already.

    Args:
        base: 16-bit model folder with safetensors.
        updates: From `read_updates`.
        dtype: Of the floating tensors written.
        out: Existing folder.

    Returns:
        merged_tensors, rounding_ratio (norm of the rounding error over norm of the update) and
        changed_share (of the weights of the merged tensors, 0 to 1).

    Raises:
        ContractError: If an update finds no tensor, or one of another shape.
        ParityError: If a merged weight is not finite.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    check_updates_fit(base, updates)
    tally = _Tally()
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata()
            tensors = {
                name: _merged_tensor(name, file.get_tensor(name), updates.get(name), dtype, tally)
                for name in file.keys()  # noqa: SIM118 (safe_open is no mapping)
            }
        save_file(tensors, out / shard.name, metadata=metadata)
    return tally.as_metrics()


def check_updates_fit(base: Path, updates: dict[str, LowRankUpdate]) -> None:
    """Refuse an adapter whose modules the base lacks or has in another shape.

    Raises:
        ContractError: Naming the tensors; nothing was read but the headers.
    """
    shapes = dict(_tensor_shapes(base))
    missing = sorted(updates.keys() - shapes.keys())
    if missing:
        raise ContractError(
            f"adapter: {len(missing)} of {len(updates)} modules are not in the original, e.g. "
            f"{missing[0]}; it was trained on another architecture"
        )
    for name, update in updates.items():
        implied = (update.b.shape[0], update.a.shape[1])
        if implied != shapes[name]:
            raise ContractError(
                f"adapter: {name} is {list(shapes[name])} in the original, the adapter's factors "
                f"make {list(implied)}; it was trained on another base"
            )


def _check_type(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ContractError(
            f"adapter: peft_type is {config.get('peft_type')!r}; merge_fp16 takes LORA (with or "
            "without use_dora)"
        )
    for option in ("use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if config.get(option):
            raise ContractError(
                f"adapter: {option}={config[option]!r} changes what merging means and is not "
                "supported yet; train without it"
            )
    if config.get("bias", "none") != "none" or config.get("fan_in_fan_out"):
        raise ContractError(
            "adapter: bias and fan_in_fan_out are not supported; train without them"
        )
    if config.get("init_lora_weights", True) not in (True, "gaussian"):
        raise ContractError(
            f"adapter: init_lora_weights={config['init_lora_weights']!r} changes the base weights, "
            "so W + BA is wrong; train with init_lora_weights=true"
        )


def _tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, tuple(file.get_slice(name).get_shape())


class _Tally:
    """Sums of squares over all merged tensors, so that the ratio is of whole-model norms."""

    def __init__(self) -> None:
        self.tensors = 0
        self.error = self.update = 0.0
        self.changed = self.weights = 0

    def add(self, before: "torch.Tensor", exact: "torch.Tensor", rounded: "torch.Tensor") -> None:
        self.tensors += 1
        self.error += float((rounded.float() - exact).square().sum(dtype=_float64()))
        self.update += float((exact - before.float()).square().sum(dtype=_float64()))
        self.changed += int((rounded != before).sum())
        self.weights += before.numel()

    def as_metrics(self) -> dict[str, float]:
        return {
            "merged_tensors": float(self.tensors),
            "rounding_ratio": (self.error / self.update) ** 0.5 if self.update else 0.0,
            "changed_share": self.changed / self.weights if self.weights else 0.0,
        }


def _float64() -> "torch.dtype":
    import torch

    return torch.float64


def _merged_tensor(
    name: str,
    tensor: "torch.Tensor",
    update: LowRankUpdate | None,
    dtype: "torch.dtype",
    tally: _Tally,
) -> "torch.Tensor":
    if update is None:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    exact = merge_update(tensor, update)
    rounded = exact.to(dtype)
    if not rounded.isfinite().all():
        raise ParityError(
            f"merge_fp16: {name} is not finite after merging into {dtype}; the adapter diverged or "
            "float16 overflowed: look at the training loss, or set merge_fp16.dtype=bfloat16"
        )
    tally.add(tensor, exact, rounded)
    return rounded.contiguous()

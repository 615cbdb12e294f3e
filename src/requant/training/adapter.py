"""An adapter around its training: peft's configuration of it, the layers it reaches, its files."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from requant.adapters.folder import CONFIG_NAME
from requant.config.training import TrainAdapter
from requant.errors import ContractError
from requant.methods import METHODS


def peft_config(section: TrainAdapter) -> Any:
    """Make peft's configuration of a method; what rank and alpha mean to it, its section says."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    method = METHODS[section.method]
    make = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.peft_type)]
    if method.prompts:
        return make(num_virtual_tokens=section.rank, task_type="CAUSAL_LM")
    targets = section.target_modules
    return make(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        use_dora=section.method == "dora",
        use_rslora=section.method == "rslora",
        task_type="CAUSAL_LM",
    )


def check_start(start: Path, wanted: Any) -> None:
    """Refuse to train an adapter on that is another than the one asked for.

    Args:
        start: Its peft folder.
        wanted: peft's configuration of the one asked for.

    Raises:
        ContractError: With each field that differs, both values, and the way out.
    """
    from peft import PeftConfig

    found = PeftConfig.from_pretrained(str(start))
    fields = ("peft_type", "r", "lora_alpha", "target_modules", "use_dora", "use_rslora")
    pairs = {name: (getattr(found, name, None), getattr(wanted, name, None)) for name in fields}
    # "all-linear" is written down as the layers that it found.
    if pairs["target_modules"][1] == "all-linear":
        del pairs["target_modules"]
    differ = [
        f"{name}: {_listed(was)} -> {_listed(now)}"
        for name, (was, now) in pairs.items()
        if _listed(was) != _listed(now)
    ]
    if differ:
        raise ContractError(
            "train_adapter: the adapter of the generation before is another than tonight's "
            f"({'; '.join(differ)}); set train_adapter back, or let this night start anew with "
            "generations.policy=fresh"
        )


def _listed(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, set | list) else str(value)


def put_below(model: Any, stacked: Mapping[str, Path]) -> None:
    """Let frozen adapters act below the one that is trained: W + sum of B_i A_i + B A.

    Args:
        model: peft model with the adapter "default".
        stacked: Name to peft folder of the others; LoRA, as sums of those are exact.
    """
    if not stacked:
        return
    for name, folder in stacked.items():
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    activate_all(model, stacked)


def activate_all(model: Any, stacked: Collection[str]) -> None:
    """Let all adapters act, and train "default" alone; peft's own loading switches others off.

    Args:
        model: peft model.
        stacked: Names of the frozen adapters.
    """
    # A checkpoint is loaded into the first one that is active.
    model.base_model.set_adapter(["default", *stacked])
    for name, parameter in model.named_parameters():
        if any(f".{adapter}." in name for adapter in stacked):
            parameter.requires_grad = False


def check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Refuse names of layers that a model does not have.

    Raises:
        ContractError: Naming them, and the model's linear layers.
    """
    if targets == ("all-linear",):
        return
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if name}
    unknown = sorted(set(targets) - present)
    if unknown:
        leaves = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            # GPT-2's Conv1D has nf in place of out_features.
            if not list(module.children())
            and (getattr(module, "in_features", None) or getattr(module, "nf", None))
        }
        raise ContractError(
            f"train_adapter.target_modules: {', '.join(unknown)} not in this model; its linear "
            f"layers are: {', '.join(sorted(leaves))}; name some of them, or [all-linear]"
        )


def check_no_experts(adapted: Any) -> None:
    """Refuse what peft makes of targets in a mixture of experts: the merge cannot take it.

    Raises:
        ContractError: Naming the experts, and the layers outside of them.
    """
    from torch.nn import Linear

    config = adapted.peft_config["default"]
    if experts := sorted(getattr(config, "target_parameters", None) or ()):
        layers = {
            name.removesuffix(".base_layer").rpartition(".")[2]
            for name, module in adapted.named_modules()
            if isinstance(module, Linear) and name.endswith(".base_layer")
        }
        raise ContractError(
            f"train_adapter.target_modules: peft adapts {', '.join(experts)} of fused experts too, "
            "which cannot be merged; name layers outside of the experts, which then stay frozen: "
            f"[{', '.join(sorted(layers))}]"
        )


def layer_sizes(model: Any) -> dict[str, int]:
    """Return module name to the numbers in its own weights, before they are packed, tied ones once.

    A packed layer (NF4, GPTQ) holds in_features x out_features of them.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        tied = not own and any(True for _ in module.parameters(recurse=False))
        seen |= {id(parameter) for parameter in own}
        features: Any = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
        if all(features) and not tied:
            bias = getattr(module, "bias", None)
            sizes[name] = features[0] * features[1] + (0 if bias is None else bias.numel())
        elif own:
            sizes[name] = sum(parameter.numel() for parameter in own)
    return sizes


def frozen_sizes(adapted: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sum what an adapter does not reach by kind of layer, largest first.

    Args:
        adapted: peft model.
        sizes: `layer_sizes` of its base.

    Returns:
        Name of the layer inside a block, e.g. mlp.experts, or of the model, to its parameters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    reached = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    frozen: Counter[str] = Counter()
    for name, size in sizes.items():
        if name not in reached:
            # Of model.layers.3.mlp.experts what follows the last number.
            frozen[re.split(r"\.\d+\.", name)[-1].removeprefix("model.")] += size
    return dict(frozen.most_common())


def normalise(adapter: Path, peft_config: Any) -> None:
    """Make the same adapter the same bytes anywhere: no path of the base, no order of a set."""
    path = adapter / CONFIG_NAME
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    for name, value in vars(peft_config).items():
        if isinstance(value, set):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (adapter / "README.md").unlink(missing_ok=True)

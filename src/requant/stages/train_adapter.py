"""train_adapter: LoRA, DoRA or a prompt on the quantized base."""

import json
from pathlib import Path
from typing import Any

from requant.config.sections import UNMERGEABLE_METHODS, TrainAdapter
from requant.errors import ContractError
from requant.provenance import read_provenance, weights_digest, write_provenance
from requant.stage import Metrics, Stage, StageContext


def execute(section: TrainAdapter, context: StageContext, *, base: Path, data: Path) -> Metrics:
    """Train an adapter on assistant tokens and save it as an ordinary peft folder.

    DoRA: W' = m (W + s B A) / ||W + s B A||_c with s = alpha / rank (arXiv:2402.09353); LoRA is the
    same without m and the norm (arXiv:2106.09685).

    Args:
        section: What to train and for how long.
        context: Of the stage.
        base: Model artifact the adapter is trained on, quantized or not.
        data: Dataset artifact.

    Raises:
        ContractError: If no module of the base is named in `target_modules`.
        TerminalError: As `fine_tune`.
    """
    from requant.models import import_gptqmodel, load_model, load_tokenizer
    from requant.training import fine_tune

    import_gptqmodel()
    from peft import get_peft_model
    from transformers import set_seed

    # Seeds the random A: without it the same key would give other bytes.
    set_seed(context.seed)
    model = load_model(base, context.device, trainable=True)
    if section.method not in UNMERGEABLE_METHODS:
        _check_targets(model, section.target_modules)
    model = get_peft_model(model, _peft_config(section))
    metrics = fine_tune(model, load_tokenizer(base), data, section.optimisation, context)
    model.save_pretrained(context.out, save_embedding_layers=False)
    _normalise(context.out)
    digest = weights_digest(base)
    # An unquantized base is the original itself.
    original = read_provenance(base).get("original", digest)
    write_provenance(context.out, trained_on=digest, original=original)
    return metrics


def _peft_config(section: TrainAdapter) -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    prompts = {
        "prefix_tuning": PrefixTuningConfig,
        "prompt_tuning": PromptTuningConfig,
        "p_tuning": PromptEncoderConfig,
    }
    if section.method in prompts:
        return prompts[section.method](num_virtual_tokens=section.rank, task_type="CAUSAL_LM")
    targets = section.target_modules
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        use_dora=section.method == "dora",
        use_rslora=section.method == "rslora",
        task_type="CAUSAL_LM",
    )


def _normalise(adapter: Path) -> None:
    """Make the same adapter the same bytes anywhere: no path of the base, no order of a set."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    if "target_modules" in config:
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (adapter / "README.md").unlink(missing_ok=True)


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    if targets == ("all-linear",):
        return
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if name}
    unknown = sorted(set(targets) - present)
    if unknown:
        leaves = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if not list(module.children()) and getattr(module, "in_features", None)
        }
        raise ContractError(
            f"train_adapter.target_modules: {', '.join(unknown)} not in this model; its linear "
            f"layers are: {', '.join(sorted(leaves))}"
        )


STAGE = Stage(
    name="train_adapter",
    version=3,
    kind="adapter",
    libraries=(
        "torch",
        "transformers",
        "tokenizers",
        "peft",
        "trl",
        "accelerate",
        "bitsandbytes",
        "gptqmodel",
    ),
    execute=execute,
    data_parallel=True,
)

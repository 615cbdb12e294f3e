"""train_adapter: LoRA, DoRA or a prompt on the quantized base."""

from pathlib import Path

from requant.config.training import TrainAdapter
from requant.errors import TerminalError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import figure
from requant.methods import METHODS
from requant.models.finite import broken_tensors
from requant.models.provenance import (
    check_provenance,
    read_provenance,
    weights_digest,
    write_provenance,
)
from requant.training.adapter import (
    activate_all,
    check_no_experts,
    check_start,
    check_targets,
    frozen_sizes,
    layer_sizes,
    normalise,
    peft_config,
    put_below,
)
from requant.training.words import LOSSES
from requant.wording import few


def execute(
    section: TrainAdapter,
    context: StageContext,
    *,
    base: Path,
    data: Path,
    start: Path | None = None,
    **stacked: Path,
) -> Metrics:
    """Train an adapter on assistant tokens and save it as an ordinary peft folder.

    DoRA: W' = m (W + s B A) / ||W + s B A||_c with s = alpha / rank (arXiv:2402.09353); LoRA is the
    same without m and the norm (arXiv:2106.09685).

    Args:
        section: What to train and for how long.
        context: Of the stage.
        base: Model artifact the adapter is trained on, quantized or not.
        data: Dataset artifact.
        start: Adapter of an earlier night that is trained on; None: a new one.
        **stacked: Adapters of earlier nights below the new one, which stay as they are.

    Raises:
        ContractError: If no module of the base is named in `target_modules`, or `start` is an
            adapter of another base, or another adapter than `section` describes.
        TerminalError: As `fine_tune`, or if a weight of the adapter is NaN or infinite.
    """
    from requant.models.load import import_gptqmodel, load_model
    from requant.models.tokenizer import load_tokenizer
    from requant.training.fine_tune import fine_tune

    import_gptqmodel()
    from peft import PeftConfig, PeftModel, get_peft_model
    from transformers import set_seed

    # Seeds the random A: without it the same key would give other bytes.
    set_seed(context.seed)
    model = load_model(base, context.device, trainable=True)
    if not METHODS[section.method].prompts:
        check_targets(model, section.target_modules)
    sizes = layer_sizes(model)
    wanted = peft_config(section)
    if start is None:
        model = get_peft_model(model, wanted)
    else:
        check_start(start, wanted)
        check_provenance(start, trained_on=weights_digest(base))
        found = PeftConfig.from_pretrained(str(start))
        if hasattr(wanted, "lora_dropout"):
            # No weight depends on it, so a night may have another one than its parent.
            found.lora_dropout = wanted.lora_dropout
        model = PeftModel.from_pretrained(model, start, is_trainable=True, config=found)
    for folder in stacked.values():
        check_provenance(folder, trained_on=weights_digest(base))
    put_below(model, stacked)
    check_no_experts(model)
    frozen = frozen_sizes(model, sizes)
    whole = sum(sizes.values())
    context.reporter.message(
        f"{1 - sum(frozen.values()) / whole:.1%} of the base's {figure(whole)} parameters are "
        "in adapted layers; left frozen: "
        + (", ".join(f"{name} ({figure(size)})" for name, size in frozen.items()) or "nothing")
    )
    metrics = fine_tune(
        model,
        load_tokenizer(base),
        data,
        section.optimisation,
        context,
        pull=section.pull,
        trained_before=start is not None,
        on_resume=lambda: activate_all(model, stacked) if stacked else None,
    )
    model.save_pretrained(context.out, save_embedding_layers=False, selected_adapters=["default"])
    if broken := broken_tensors(context.out.glob("*.safetensors")):
        raise TerminalError(
            f"train_adapter: {len(broken)} tensors of the adapter hold NaN or infinity: "
            f"{few(broken)}; lower optimisation.learning_rate or optimisation.max_grad_norm"
        )
    normalise(context.out, model.peft_config["default"])
    digest = weights_digest(base)
    # An unquantized base is the original itself.
    original = read_provenance(base).get("original", digest)
    write_provenance(context.out, trained_on=digest, original=original)
    return {**metrics, "adapted_share": 1 - sum(frozen.values()) / whole}


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
    artifact="adapter",
    headline=LOSSES,
)

"""Supervised fine-tuning for train_adapter and continue_train: resumable, seeded, checked.

Uses trl's `SFTTrainer` on samples that `requant.data.samples` has already encoded, so the loss is
on the assistant's tokens with every chat template, not only those trl has markers for.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.config.training import Optimisation, Pull
from requant.data.artifact import TRAIN
from requant.data.samples import encode_data, summary
from requant.errors import TerminalError
from requant.execution.stage import Metrics, StageContext
from requant.training.batching import padding_share, samples_to_see, training_order
from requant.training.checkpoints import last_checkpoint, mark_complete
from requant.training.pull import curve, trainer_with_pull
from requant.wording import few

if TYPE_CHECKING:
    from transformers import TrainerCallback


def fine_tune(
    model: Any,
    tokenizer: Any,
    data: Path,
    optimisation: Optimisation,
    context: StageContext,
    *,
    pull: Pull | None = None,
    trained_before: bool = False,
    on_resume: Callable[[], None] = lambda: None,
) -> Metrics:
    """Train the parameters of `model` that require gradients, in place.

    Resumes from the last whole checkpoint in `context.work`, so a killed run repeats at most
    `checkpoint_steps` steps.

    Args:
        model: Causal language model or peft model; trainable parameters are kept in float32 while
            they are trained, because a bfloat16 weight swallows updates below 0.4% of it.
        tokenizer: Of the model, with a chat template.
        data: Dataset artifact; `train.jsonl` is read.
        optimisation: How long and how fast.
        context: Of the stage.
        pull: Second term of the loss, for a peft model; see `requant.training.pull`.
        trained_before: Whether the parameters come from an earlier training: they are trained on
            as they are. New ones are random, and may be rounded as trl does.
        on_resume: Called before the first step, when a checkpoint is loaded: loading one may
            switch adapters off.

    Returns:
        loss_first and loss_last (means over the first and last tenth of the logged steps, nats per
        token, without a pull's term), likewise first and last of a pull's `curve`, steps, passes
        (over the samples), tokens_seen (without padding), padding_share, trained_parameters, and
        the counts of `RowReport`.

    Raises:
        ContractError: As `encode_data`.
        TerminalError: If a trainable tensor gets no gradient, or loss or gradient is not finite.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    found = encode_data(
        tokenizer,
        data / TRAIN,
        optimisation.max_length,
        optimisation.too_long,
        context.reporter,
    )
    encoded, counts = found.samples, found.report.counts
    context.reporter.message(f"train.jsonl: {summary(counts)}")
    if tokenizer.pad_token is None:
        # Padding carries neither attention nor loss, so that any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.config.use_cache = False
    lengths = [len(sample["input_ids"]) for sample in encoded]
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    if beyond := sum(length > positions for length in lengths):
        context.reporter.message(
            f"{beyond} of {len(lengths)} samples are longer than the {positions} positions the "
            "base was trained on (max_position_embeddings)"
        )
    per_step = optimisation.batch_size * optimisation.gradient_accumulation
    seen = samples_to_see(
        len(encoded), per_step, steps=optimisation.max_steps, epochs=optimisation.epochs
    )
    order = training_order(lengths, per_step, seen, context.seed)
    make = SFTTrainer if pull is None else trainer_with_pull(pull, model)
    curves = ("loss",) if pull is None else ("loss", curve(pull))
    given = (
        [each.detach().clone() for each in model.parameters() if each.requires_grad]
        if trained_before
        else []
    )
    trainer = make(
        model=model,
        args=_arguments(optimisation, context, math.ceil(seen / per_step)),
        train_dataset=Dataset.from_list(encoded).select(order),
        processing_class=tokenizer,
        callbacks=[_callback(context, on_resume, curves)],
    )
    trainer.remove_callback(PrinterCallback)
    # SFTTrainer casts the adapters of a quantized base to bfloat16.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, value in zip(trained, given or trained, strict=True):
        parameter.data = value.data.float()
    checkpoint = last_checkpoint(context.work, trainer.args.max_steps, context.reporter)
    if checkpoint is not None:
        context.reporter.message(f"resuming from {checkpoint.name}")
    passes = seen / len(encoded)
    context.reporter.message(
        f"training {sum(parameter.numel() for parameter in trained):,} parameters for "
        f"{trainer.args.max_steps} steps on {len(encoded)} samples, {passes:.3g} passes"
        + (f", pulled to their start: loss + {pull.weight:g} {curve(pull)}" if pull else "")
    )
    with _labelled_positions_only():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # A model that trained with gradient checkpointing or hooks must leave as an ordinary one.
    model.config.use_cache = True
    model.eval()
    return {
        **_ends(curves, trainer.state.log_history),
        "steps": float(trainer.state.global_step),
        "passes": passes,
        "tokens_seen": float(sum(lengths[index] for index in order)),
        "padding_share": padding_share(lengths, order, optimisation.batch_size),
        **counts,
        "trained_parameters": float(sum(parameter.numel() for parameter in trained)),
    }


def check_gradients(named_parameters: Mapping[str, Any]) -> None:
    """Refuse a first step in which a trainable tensor is left out.

    Kernels exist that drop gradients while the loss still falls; GPTQ's default one on a CPU is
    one. LoRA's A is exactly zero at the first step, because B starts at zero; B must not be.

    Args:
        named_parameters: Name to trainable parameter, after a backward pass.

    Raises:
        TerminalError: Naming the tensors.
    """
    missing = [name for name, parameter in named_parameters.items() if parameter.grad is None]
    if missing:
        raise TerminalError(
            f"gradients: {len(missing)} of {len(named_parameters)} trainable tensors have none: "
            f"{few(missing)}; the base's kernel does not train: load it with another backend"
        )
    infinite = [name for name, p in named_parameters.items() if not p.grad.isfinite().all()]
    if infinite:
        raise TerminalError(
            f"gradients: not finite in {len(infinite)} of {len(named_parameters)} tensors: "
            f"{few(infinite)}; the base or the training text is damaged"
        )
    still = [n for n, p in named_parameters.items() if "lora_B" in n and not p.grad.any()]
    if still:
        raise TerminalError(
            f"gradients: exactly zero in {len(still)} lora_B tensors: {few(still)}; their "
            "module is not part of the forward pass: check train_adapter.target_modules"
        )


@contextmanager
def _labelled_positions_only() -> Iterator[None]:
    """Compute logits where a label is, on a CPU too.

    trl 1.16 leaves ignored positions out only where it has Triton. With a vocabulary of 49,152 the
    logits of the prompt are a fifth of a training step.
    """
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = before


def _arguments(optimisation: Optimisation, context: StageContext, steps: int) -> Any:
    from trl import SFTConfig

    on_gpu = context.device == "cuda"
    arguments = SFTConfig(
        output_dir=str(context.work),
        max_steps=steps,
        per_device_train_batch_size=optimisation.batch_size,
        gradient_accumulation_steps=optimisation.gradient_accumulation,
        learning_rate=optimisation.learning_rate,
        lr_scheduler_type=optimisation.schedule,
        warmup_steps=round(optimisation.warmup_ratio * steps),
        weight_decay=optimisation.weight_decay,
        max_grad_norm=optimisation.max_grad_norm,
        optim=optimisation.optimizer,
        # The dataset is laid out step by step: see `requant.training.batching`.
        train_sampling_strategy="sequential",
        # The samples are encoded, cut and labelled already.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=optimisation.gradient_checkpointing,
        save_strategy="steps",
        save_steps=optimisation.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        seed=context.seed,
        data_seed=context.seed,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # Ranks share the batch, so that as many steps see as much text as on one device.
    arguments.per_device_train_batch_size //= arguments.world_size
    return arguments


def _ends(curves: Sequence[str], history: Sequence[Mapping[str, Any]]) -> Metrics:
    """Return the means of curves over the first and the last tenth of the logged steps."""
    found: Metrics = {}
    for name in curves:
        values = [entry[name] for entry in history if name in entry]
        tenth = max(1, len(values) // 10)
        found[f"{name}_first"] = sum(values[:tenth]) / tenth
        found[f"{name}_last"] = sum(values[-tenth:]) / tenth
    return found


def _callback(
    context: StageContext, on_resume: Callable[[], None], curves: Sequence[str]
) -> "TrainerCallback":
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Checks gradients, reports curves, marks whole checkpoints."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_resume()
            # A resumed run must leave the same curve as one that was never killed.
            for entry in state.log_history:
                self._report(entry, entry["step"])
            self._checked = False

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self._checked:
                trained = {n: p for n, p in kwargs["model"].named_parameters() if p.requires_grad}
                check_gradients(trained)
                self._checked = True

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            for name in (*curves, "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise TerminalError(
                        f"{name}: {logs[name]} at step {state.global_step}; lower "
                        "optimisation.learning_rate or optimisation.max_grad_norm"
                        + (", or pull.weight" if len(curves) > 1 else "")
                    )
            self._report(logs, state.global_step)
            context.reporter.progress(state.global_step, state.max_steps, "steps")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Every rank writes a part of it.
            args.distributed_state.wait_for_everyone()
            if state.is_world_process_zero:
                mark_complete(context.work / f"checkpoint-{state.global_step}")

        def _report(self, logs: Mapping[str, Any], step: int) -> None:
            names = (*curves, "learning_rate", "grad_norm")
            points = {name: float(logs[name]) for name in names if name in logs}
            if points:
                context.reporter.metrics(points, step)

    return Watch()

"""Settings of several stages that contradict each other: what would go wrong, and the way out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from requant.config.data import choice_task
from requant.config.fit_rows import TRAINING, check_rows_fit
from requant.config.operations import CopyAction
from requant.config.task_names import (
    HELDOUT_PERPLEXITY,
    OLD_PERPLEXITY,
    PAST_PERPLEXITY,
)
from requant.methods import METHODS
from requant.store.layout import is_own

if TYPE_CHECKING:
    from requant.config import Config

OFF_THE_GRID = ("train_adapter", "merge_fp16", "continue_train", "requantize_gptq")
"""Stages of the chain through 16 bit."""


def check_stages_fit(config: "Config") -> None:
    """Refuse settings that cannot work together.

    Raises:
        ValueError: Naming the fields, their values and valid ones.
    """
    check_rows_fit(config)
    _check_generations(config)
    if config.train_on_grid.enabled:
        _check_on_grid(config)
    if config.train_adapter.enabled:
        _check_trainable(config)
    _check_nothing_is_lost(config)
    if config.merge_fp16.enabled:
        _check_merge(config)
    _check_gate(config)
    _check_served_apart(config)
    for section in TRAINING:
        batch = getattr(config, section).optimisation.batch_size
        if config.runs(section) and batch % config.runtime.ranks:
            raise ValueError(
                f"{section}.optimisation.batch_size: {batch} cannot be shared by "
                f"runtime.ranks={config.runtime.ranks}; give a multiple of it"
            )


def _check_generations(config: "Config") -> None:
    """Each policy needs a ledger's generations, and what it builds on to be in the artifacts."""
    policy = config.generations.policy
    if policy == "fresh":
        return
    named = f"generations.policy: {policy!r} with"
    if not config.collect_rows.enabled:
        raise ValueError(
            f"{named} collect_rows.enabled=false: without a ledger nothing says which night was "
            "accepted; set collect_rows.enabled=true or policy=fresh"
        )
    if config.merge_fp16.past_nights:
        raise ValueError(
            f"{named} merge_fp16.past_nights={config.merge_fp16.past_nights}: tonight's model "
            "holds the nights before already; set past_nights=0 or policy=fresh"
        )
    if not (config.train_adapter.enabled and config.merge_fp16.enabled):
        raise ValueError(
            f"{named} train_adapter or merge_fp16 switched off: a generation is an adapter that is "
            "merged; switch both on, or set policy=fresh"
        )
    if policy != "chain" and config.continue_train.enabled:
        raise ValueError(
            f"{named} continue_train.enabled=true: what it learns is in no adapter, so the next "
            "night would start without it; set continue_train.enabled=false or policy=chain"
        )
    if policy != "chain" and config.quantize_base.enabled and config.quantize_base.method == "gptq":
        raise ValueError(
            f"{named} quantize_base.method='gptq': it is calibrated on tonight's rows, so every "
            "night would have another base, and the adapter of the night before fits none of them; "
            "take nf4 or int8, or policy=chain"
        )
    method = config.train_adapter.method
    if policy == "stack" and method not in ("lora", "rslora"):
        raise ValueError(
            f"{named} train_adapter.method={method!r}: only updates of LoRA add up exactly; take "
            "lora or rslora, or policy=continue"
        )


def _check_trainable(config: "Config") -> None:
    quantized = config.quantize_base.method if config.quantize_base.enabled else None
    method = config.train_adapter.method
    refused = METHODS[method].refuses
    if quantized in refused:
        valid = " or ".join(name for name in ("nf4", "int8", "gptq") if name not in refused)
        raise ValueError(
            f"train_adapter.method: {method!r} cannot train on quantize_base.method={quantized!r} "
            f"(peft refuses it); valid with {method}: quantize_base.method={valid} or "
            "quantize_base.enabled=false"
        )
    if "all-linear" in config.train_adapter.target_modules and quantized == "gptq":
        raise ValueError(
            "train_adapter.target_modules: 'all-linear' finds no layer on a GPTQ base; "
            "name the layers, e.g. [q_proj, v_proj]"
        )


def _check_on_grid(config: "Config") -> None:
    """A night on the grid starts from GPTQ codes and ends with them; nothing trains beside it."""
    beside = [name for name in OFF_THE_GRID if config.runs(name)]
    quantize = config.quantize_base
    method = f"quantize_base.method={quantize.method!r}"
    wrong = [f"{name}.enabled=true" for name in beside]
    ways = [f"{name}.enabled=false" for name in beside]
    if not quantize.enabled:
        wrong, ways = [*wrong, "quantize_base.enabled=false"], [*ways, "quantize_base.enabled=true"]
    if quantize.method != "gptq":
        wrong, ways = [*wrong, method], [*ways, "quantize_base.method=gptq"]
    if wrong:
        raise ValueError(
            f"train_on_grid.enabled: true with {', '.join(wrong)}: the codes of a GPTQ base are "
            "trained and shipped as they are, nothing is merged or quantized; set "
            f"{', '.join(ways)}, or train_on_grid.enabled=false"
        )


def _check_nothing_is_lost(config: "Config") -> None:
    """An adapter is merged, or evaluated as it is; a base is not quantized for nobody."""
    trains, merges = config.train_adapter.enabled, config.merge_fp16.enabled
    method = config.train_adapter.method
    if trains and merges and not METHODS[method].merges:
        raise ValueError(
            f"train_adapter.method: {method!r} adds tokens, not weights: it cannot be merged. "
            "Evaluate and serve it as an adapter (merge_fp16.enabled=false, "
            "continue_train.enabled=false, requantize_gptq.enabled=false), or train lora or dora"
        )
    if merges and not trains:
        raise ValueError(
            "merge_fp16.enabled: true with train_adapter.enabled=false: the chain would merge "
            "nothing; set merge_fp16.enabled=false"
        )
    if trains and not merges:
        for later in ("continue_train", "requantize_gptq"):
            if config.runs(later):
                raise ValueError(
                    f"merge_fp16.enabled: false with train_adapter.enabled=true: {later} would "
                    f"lose the adapter; set merge_fp16.enabled=true, or {later}.enabled=false to "
                    "evaluate and serve the adapter as it is"
                )
    if config.quantize_base.enabled and not trains and not config.train_on_grid.enabled:
        raise ValueError(
            "quantize_base.enabled: true with train_adapter.enabled=false quantizes a base "
            "that nothing uses; set quantize_base.enabled=false"
        )


def _check_merge(config: "Config") -> None:
    merge, quantize, again = config.merge_fp16, config.quantize_base, config.requantize_gptq
    if merge.base != "original" and not quantize.enabled:
        raise ValueError(
            f"merge_fp16.base: {merge.base!r} with quantize_base.enabled=false: nothing was "
            "quantized; set merge_fp16.base=original"
        )
    same_grid = quantize.method == "gptq" and again.enabled and again.bits == quantize.bits
    if merge.base != "original" and same_grid and again.group_size == quantize.group_size:
        raise ValueError(
            f"merge_fp16.base: {merge.base!r} with quantize_base.method='gptq' and "
            f"requantize_gptq.group_size={again.group_size}: weights that lie on a "
            f"{again.bits}-bit grid are rounded to the same grid again, which takes back most of "
            "what was trained; set "
            "merge_fp16.base=original, or another group_size or quantize_base.method"
        )


def _check_served_apart(config: "Config") -> None:
    """Models are copied beside what requant keeps, never among it: each deletes what it finds."""
    action = config.deploy.action
    if not isinstance(action, CopyAction):
        return
    folder, state = (Path(os.path.realpath(path)) for path in (action.folder, config.state))
    inside = folder.relative_to(state).parts[:1] if folder.is_relative_to(state) else None
    if inside is None and not state.is_relative_to(folder):
        return
    if inside and not is_own(inside[0]):
        return
    if inside:
        where = f"lies in {inside[0]}/ of the state folder (state: {config.state})"
    elif inside is not None:
        where = "is the state folder itself"
    else:
        where = f"holds the state folder (state: {config.state}), which is for its owner only"
    raise ValueError(
        f"deploy.action.folder: {action.folder} {where}; give a folder outside of it, or one of "
        f"another name in it, e.g. {config.state / 'served'}"
    )


def generated_tasks(config: "Config") -> tuple[str, ...]:
    """Return the evaluation tasks a night may make from its data."""
    if not config.evaluate.generated_tasks:
        return ()
    choice = choice_task(config.prepare_data.source)
    return (HELDOUT_PERPLEXITY, choice, OLD_PERPLEXITY, PAST_PERPLEXITY)


def _check_gate(config: "Config") -> None:
    """What the gate is to judge by is evaluated; a model that serves by itself is guarded.

    Tasks by name may be groups, whose members only lm-eval knows: the look before the night asks
    it.
    """
    evaluate, gate = config.evaluate, config.evaluate.gate
    made = generated_tasks(config)
    for field, named in (
        ("guard", gate.guard or ()),
        ("target", gate.target or ()),
        ("floors", tuple(gate.floors)),
    ):
        unknown = [task for task in named if task not in made]
        if unknown and not evaluate.tasks and evaluate.enabled:
            raise ValueError(
                f"evaluate.gate.{field}: {', '.join(map(repr, unknown))} will not be evaluated; "
                f"the tasks of this night are {', '.join(made)}; add others to evaluate.tasks"
            )
        if PAST_PERPLEXITY in named and not evaluate.past_nights:
            raise ValueError(
                f"evaluate.gate.{field}: {PAST_PERPLEXITY!r} with evaluate.past_nights=0: nothing "
                "of earlier nights is evaluated; set evaluate.past_nights, or take it out"
            )
    if not config.promote.auto:
        return
    for needed in ("promote", "evaluate", config.ships):
        if not getattr(config, needed).enabled:
            raise ValueError(
                f"promote.auto: true with {needed}.enabled=false: only a 4-bit model "
                f"that was evaluated is registered and may serve; set {needed}.enabled=true or "
                "promote.auto=false"
            )
    for field, chosen in (("guard", gate.guard), ("target", gate.target)):
        if chosen is None and not made:
            raise ValueError(
                f"promote.auto: true with evaluate.generated_tasks=false and evaluate.gate.{field}="
                f"null: nothing would be judged by; name some of evaluate.tasks in evaluate.gate."
                f"{field}, or set promote.auto=false"
            )

"""Commands on model folders, without a pipeline: merge adapters, undo a night, compare models."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from requant.cli.common import ended_by_signals, errors
from requant.combination import Combination

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requant.comparison.divergence import Fidelity
    from requant.config.merge import MergeLimits

Text = Annotated[
    Path | None,
    typer.Option(
        help=".jsonl with messages or text, or plain text; without it the texts Python comes with"
    ),
]
Sequences = Annotated[int, typer.Option(min=2, help="pieces of text, 256 tokens each at most")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def merge(
    base: Annotated[Path, typer.Option(help="16- or 32-bit model the adapters belong to")],
    adapter: Annotated[list[Path], typer.Option(help="peft folder, may be repeated")],
    out: Annotated[Path, typer.Option(help="new folder")],
    trained_on: Annotated[
        Path | None, typer.Option(help="quantized base that was trained on, to compare with")
    ] = None,
    text: Text = None,
    sequences: Sequences = 16,
    parity: Annotated[
        bool, typer.Option(help="measure the merged model against the unmerged one")
    ] = True,
    combine: Annotated[Combination, typer.Option(help="how several become one")] = "cat",
    weight: Annotated[
        list[float] | None, typer.Option(help="of each adapter; equal shares of one without it")
    ] = None,
    density: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="share of an update ties and dare keep")
    ] = 0.5,
    scale: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the update")] = 1.0,
    dtype: Annotated[
        Literal["original", "bfloat16", "float16", "float32"], typer.Option(help="of the weights")
    ] = "original",
    untie: Annotated[
        bool, typer.Option(help="may give a tied output layer weights of its own")
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of a limit of merge_fp16, may be repeated"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Merge peft adapters into a model, with every check of the pipeline."""
    from rich.progress import Progress

    with errors(), ended_by_signals():
        from requant.comparison.batches import file_batches
        from requant.merging import Mix
        from requant.merging.command import (
            Request,
            merge_request,
            named_base,
            plan_request,
            unproved,
        )
        from requant.models.device import resolve_device
        from requant.preflight.folders import refuse_unreadable

        request = Request(
            base=base,
            adapters=adapter,
            out=out,
            trained_on=trained_on,
            mix=Mix(combine, weight or (), density),
            scale=scale,
            dtype=None if dtype == "original" else dtype,
            untie=untie,
            limits=_limits(limit or []),
        )
        plan = plan_request(request)
        refuse_unreadable({"--base": base}, text, sequences if parity else 0)
        batches = (lambda model: file_batches(model, text, sequences)) if parity else None
        for folder in unproved(request):
            checked = "names, shapes and parity" if parity else "names and shapes"
            typer.echo(f"{folder}: trained on {named_base(folder)}; checked by {checked}")
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("shards", total=None)
            metrics = merge_request(
                request,
                plan,
                batches,
                resolve_device(device),
                lambda done, total: progress.update(bar, completed=done, total=total),
            )
    _print_merge(metrics)
    typer.echo(f"merged: {out}")


def undo(
    model: Annotated[Path, typer.Argument(help="4-bit model that train_on_grid made")],
    out: Annotated[Path, typer.Option(help="new folder")],
    delta: Annotated[
        Path | None, typer.Option(help="of that night; without it the one inside the model")
    ] = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="the other way: MODEL is the base, OUT what shipped")
    ] = False,
) -> None:
    """Give back the base of a reversible night: every file with the sha256 it had."""
    with errors(), ended_by_signals():
        from requant.quantization import grid_delta

        folder = delta or model / grid_delta.DELTA
        record = (grid_delta.redo if redo else grid_delta.undo)(model, folder, out)
    files = record.shipped if redo else record.base
    typer.echo(
        f"{record.changed} of {record.weights} weights moved {'on' if redo else 'back'} by a step; "
        f"{record.clamped} more were at an end of the range, and had stayed"
    )
    typer.echo(
        f"{'redone' if redo else 'undone'}: {out}, {len(files)} files, each with its sha256 "
        f"(together {grid_delta.folder_digest(files)[:12]})"
    )


def compare(
    a: Annotated[Path, typer.Argument(help="model folder; the reference")],
    b: Annotated[Path, typer.Argument(help="model folder")],
    text: Text = None,
    sequences: Sequences = 64,
    device: Device = "auto",
) -> None:
    """Measure how far model B is from model A: KL, agreement, loss, with paired standard errors."""
    with errors():
        from requant.comparison.batches import file_batches
        from requant.comparison.divergence import compare_log_probs
        from requant.comparison.folders import folder_log_probs, on_disk
        from requant.errors import ConfigError, ContractError
        from requant.models.config import read_model_config
        from requant.models.device import resolve_device
        from requant.models.tokenizer import same_tokens
        from requant.preflight.folders import refuse_unreadable

        for folder in (a, b):
            if not folder.is_dir():
                raise ConfigError(f"{folder}: is no folder; give a Hugging Face model")
            read_model_config(folder)
        if not same_tokens(a, b):
            raise ContractError(f"{a} and {b}: have different tokenizers; compare models of one")
        refuse_unreadable({"A": a, "B": b}, text, sequences)
        chosen = resolve_device(device)
        batches = file_batches(a, text, sequences)
        if len(batches) < 2:
            raise ConfigError(
                f"--text {text}: holds one piece of text; standard errors take two at least"
            )
        with on_disk(folder_log_probs(a, batches, chosen, exact=True)) as reference:
            fidelity = compare_log_probs(
                reference, folder_log_probs(b, batches, chosen, exact=True), batches
            )
    _print_comparison(fidelity, len(batches))


def _limits(given: "Sequence[str]") -> "MergeLimits":
    from dataclasses import fields

    from pydantic import ValidationError

    from requant.config.merge import MergeFp16, MergeLimits
    from requant.errors import ConfigError
    from requant.expected import expected

    names = [field.name for field in fields(MergeLimits)]
    values = dict(text.partition("=")[::2] for text in given)
    if unknown := sorted(values.keys() - set(names)):
        raise ConfigError(f"--limit {unknown[0]}: is no limit; expected one of {', '.join(names)}")
    try:
        return MergeFp16.model_validate(values).limits
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"--limit {name}={values[name]}: {expected(first)}") from error


def _print_merge(metrics: "Mapping[str, float]") -> None:
    lines = [
        f"{metrics['merged_tensors']:.0f} tensors merged; the weights kept "
        f"{metrics['kept_share']:.2%} of the update (rounding error "
        f"{metrics['rounding_ratio']:.2%} of its norm)"
    ]
    if "parity_kl" not in metrics:
        lines.append("what rounding does to the model was not measured (--no-parity)")
    if "parity_kl" in metrics:
        if not metrics["parity_of_result"]:
            lines.append("nothing unmerged computes this; of the adapters merged whole, the worst:")
        lines.append(
            f"against original + adapter: KL {max(0.0, metrics['parity_kl']):.2g} nats per token, "
            f"agreement {metrics['parity_agreement']:.2%} (the adapter itself: KL "
            f"{metrics['update_kl']:.2g})"
        )
        lines.append(f"worst module: {metrics['parity_module_error']:.1%} off beyond rounding")
        lines.append(
            f"rounding: {metrics['rounding_kl_share']:.2%} of the update's KL, loss "
            f"{metrics['rounding_loss']:+.2g} ± {metrics['rounding_loss_error']:.1g} where the "
            f"update gains {metrics['update_gain']:.3g}"
        )
        if metrics["trained_kl"] != metrics["parity_kl"]:
            lines.append(
                f"against quantized base + adapter: KL {metrics['trained_kl']:.2g}, agreement "
                f"{metrics['trained_agreement']:.2%}, loss {metrics['trained_loss_change']:+.2g}"
            )
    typer.echo("\n".join(lines))


def _print_comparison(fidelity: "Fidelity", sequences: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "mean per token", "standard error", "95% interval")
    names = {
        "kl": "KL(A || B), nats",
        "agreement": "same most likely token",
        "loss_change": "loss of B minus A, nats",
    }
    for name, title in names.items():
        found = fidelity.paired[name]
        low, high = found.interval(sequences)
        table.add_row(title, f"{found.mean:.4g}", f"{found.error:.2g}", f"{low:.4g} to {high:.4g}")
    Console().print(table)
    typer.echo(
        f"loss of A {fidelity.loss_reference:.4f}, of B {fidelity.loss_candidate:.4f}, over "
        f"{fidelity.tokens} tokens of {sequences} sequences (paired by sequence)"
    )

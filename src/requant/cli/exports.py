"""The command that writes a GPTQ model in the format of another server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from requant.cli.common import DEFAULT_STATE, StateFolder, ended_by_signals, errors, open_store
from requant.cli.console import Bar
from requant.cli.models import Device, Text

if TYPE_CHECKING:
    from requant.exporting.command import Exported


def export(
    model: Annotated[str, typer.Argument(help="GPTQ folder, or the start of an artifact's digest")],
    format: Annotated[
        Literal["gguf", "compressed-tensors"],
        typer.Option(help="gguf for llama.cpp, compressed-tensors for vLLM"),
    ],
    out: Annotated[Path, typer.Option(help="new folder")],
    against: Annotated[
        Path | None, typer.Option(help="the 16-bit model it was made of, to compare with, too")
    ] = None,
    text: Text = None,
    sequences: Annotated[
        int, typer.Option(min=2, help="pieces of text, 256 tokens each at most")
    ] = 32,
    max_kl: Annotated[
        float, typer.Option(min=0.0, help="nats per token it may be from the GPTQ model")
    ] = 1e-4,
    state: StateFolder = DEFAULT_STATE,
    device: Device = "auto",
) -> None:
    """Write a GPTQ model for another server: the same integers and scales, read back, measured."""
    from rich.progress import Progress

    with errors(), ended_by_signals():
        from requant.comparison.batches import file_batches
        from requant.errors import ConfigError
        from requant.exporting.command import check_request, export_model
        from requant.models.device import resolve_device
        from requant.preflight.folders import refuse_unreadable

        folder = _folder(model, state)
        check_request(folder, format, out, against)
        named = {"MODEL": folder} | ({} if against is None else {"--against": against})
        refuse_unreadable(named, text, sequences)
        batches = file_batches(folder, text, sequences)
        if len(batches) < 2:
            raise ConfigError(
                f"--text {text}: holds one piece of text; standard errors take two at least"
            )
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            found = export_model(
                folder,
                format,
                out,
                batches,
                device=resolve_device(device),
                reporter=Bar(progress, progress.add_task("", total=None)),
                against=against,
                max_kl=max_kl,
            )
    typer.echo("\n".join(_lines(found)))
    typer.echo(f"exported: {out}")


def _folder(model: str, state: Path) -> Path:
    """Find a model by its folder, or by the start of its digest, its bytes verified."""
    from requant.errors import ConfigError
    from requant.store import check_copy, find_object, starts_digest
    from requant.store.objects import verify_to_serve

    path = Path(model)
    if path.is_dir():
        check_copy(path)
        return path
    if not starts_digest(model):
        raise ConfigError(
            f"MODEL {model}: is no folder; give one of a GPTQ model, or at least 4 hex digits of "
            "an artifact's digest, as `requant status CONFIG` prints it"
        )
    store = open_store(state)
    found = find_object(store, model)
    verify_to_serve(store, store.ref("model", found.name))
    return found


def _lines(found: "Exported") -> list[str]:
    from requant.figures import figure
    from requant.wording import data_size

    layers = ", ".join(f"{number} as {kind}" for kind, number in sorted(found.kinds.items()))
    lines = [
        f"{found.exact} quantized layers ({layers}), each read back bit for bit; "
        f"{data_size(found.size)}"
    ]
    names = {
        "gptq": "against the GPTQ model",
        "original": "against the 16-bit model",
        "gptq_against_original": "the GPTQ model against the 16-bit model",
    }
    for name, fidelity in found.fidelity.items():
        lines.append(
            f"{names[name]}: KL {figure(max(0.0, fidelity.kl))} ± "
            f"{figure(fidelity.paired['kl'].error)} nats per token, agreement "
            f"{fidelity.agreement:.2%}, loss {fidelity.loss_change:+.2g} "
            f"({fidelity.tokens} tokens of {len(fidelity.texts)} texts)"
        )
    return lines

"""An export: written beside, read back, measured, and only then given its name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.canonical import canonical_json
from requant.comparison.batches import Batch
from requant.comparison.divergence import Fidelity, compare_log_probs, exceeds
from requant.comparison.folders import folder_log_probs, on_disk
from requant.errors import ConfigError, ContractError, ParityError
from requant.execution.progress import told
from requant.execution.stage import Reporter
from requant.exporting.codes import read_gptq
from requant.exporting.compressed import write_compressed
from requant.exporting.gguf_file import write_gguf
from requant.exporting.readers import check_exact, export_log_probs
from requant.machine.library_noise import no_library_noise
from requant.models.config import quantization_of, read_model_config
from requant.models.new_folder import new_folder, refuse_used
from requant.models.provenance import weights_digest
from requant.models.tokenizer import same_tokens
from requant.store.manifest import describe

if TYPE_CHECKING:
    import torch

EXPORT_NAME = "export.json"
MAX_KL = 1e-4
"""Nats per token between a GPTQ model and its export: the same weights, whose products are rounded
in another order."""


@dataclass(frozen=True)
class Format:
    """A format that models are exported in."""

    write: Callable[[Path, Path, Reporter], dict[str, int]]
    packages: tuple[str, ...]
    """That it takes, by their names in the index of packages."""


FORMATS: Mapping[str, Format] = {
    "gguf": Format(write_gguf, ("gguf",)),
    "compressed-tensors": Format(write_compressed, ("compressed-tensors",)),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from what it was made of."""

    kinds: Mapping[str, int]
    """Type of block, or scheme -> quantized layers."""
    exact: int
    """Layers whose weights were read back bit for bit."""
    size: int
    """Bytes of all files."""
    fidelity: Mapping[str, Fidelity]
    """gptq: the export against the GPTQ model; original: against the 16-bit one, where that was
    given; gptq_against_original: what the GPTQ model itself is off."""


def check_request(model: Path, kind: str, out: Path, against: Path | None) -> None:
    """Check all that can be checked before the work.

    Raises:
        ConfigError: If a folder is missing or quantized, a package is not installed, or `out`
            holds something.
        ContractError: If the model is none of GPTQ, or the two have different tokenizers.
    """
    for name, folder in (("MODEL", model), ("--against", against)):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{name} {folder}: is no folder; give a Hugging Face model")
    refuse_used(out)
    for package in FORMATS[kind].packages:
        try:
            version(package)
        except PackageNotFoundError:
            raise ConfigError(
                f"--format {kind}: takes the package {package}, which is not installed: "
                "pip install -c constraints.txt '.[exports]'"
            ) from None
    read_gptq(model)
    if against is None:
        return
    method = quantization_of(read_model_config(against))
    if method is not None:
        raise ConfigError(
            f"--against {against}: is quantized ({method}); give the 16-bit model MODEL was made of"
        )
    if not same_tokens(model, against):
        raise ContractError(
            f"{model} and {against}: have different tokenizers; give the 16-bit model the first "
            "was made of"
        )


def export_model(
    model: Path,
    kind: str,
    out: Path,
    batches: list[Batch],
    *,
    device: str,
    reporter: Reporter,
    against: Path | None = None,
    max_kl: float = MAX_KL,
) -> Exported:
    """Write an export beside `out`, read it back, measure it, and give it its name if it passes.

    Args:
        model: GPTQ folder.
        kind: Of `FORMATS`.
        out: Folder that is made; may be there, empty.
        batches: Text that all models read; standard errors take two at least.
        device: cpu or cuda.
        reporter: Hears how far it is.
        against: The 16-bit model; None where it is not asked for.
        max_kl: Nats per token that the export may be from the GPTQ model.

    Raises:
        ContractError: If the format cannot hold the model exactly.
        ParityError: If a weight is read back otherwise, or the limit is passed; nothing is left.
    """
    with new_folder(out) as partial:
        with no_library_noise():
            kinds = FORMATS[kind].write(model, partial, reporter)
            exact = check_exact(model, partial, kind)
        size = describe(partial).size
        measured = _measured(model, partial, kind, batches, device, reporter, against)
        found = Exported(kinds, exact, size, measured)
        if exceeds(measured["gptq"].kl, max_kl):
            raise ParityError(
                f"{kind}: differs from the GPTQ model by {measured['gptq'].kl:.3g} nats per token, "
                f"limit --max-kl {max_kl:g}, though all {exact} layers hold its weights; likely a "
                "part of the network that the format's readers compute otherwise: take another "
                "--format, or serve the GPTQ folder itself"
            )
        record = _record(found, model, kind, partial, against)
        (partial / EXPORT_NAME).write_bytes(canonical_json(record))
    return found


def _measured(
    model: Path,
    export: Path,
    kind: str,
    batches: list[Batch],
    device: str,
    reporter: Reporter,
    against: Path | None,
) -> dict[str, Fidelity]:
    """Compare the export, the GPTQ model and the 16-bit one, one in memory at a time."""

    def run(folder: Path, what: str) -> Iterator["torch.Tensor"]:
        heard = told(batches, reporter, f"texts of {what}")
        return folder_log_probs(folder, heard, device, exact=True)

    exported = export_log_probs(
        export, kind, told(batches, reporter, "texts of the export"), device
    )
    with on_disk(run(model, "the GPTQ model")) as gptq, on_disk(exported) as ours:
        found = {"gptq": compare_log_probs(gptq, ours, batches)}
        if against is not None:
            with on_disk(run(against, "the 16-bit model")) as original:
                found["original"] = compare_log_probs(original, ours, batches)
                found["gptq_against_original"] = compare_log_probs(original, gptq, batches)
    return found


def _record(
    found: Exported, model: Path, kind: str, partial: Path, against: Path | None
) -> dict[str, Any]:
    """Say in export.json what the export is, of what, by what, and how far from it."""
    source = {"gptq": weights_digest(model, hashed=True)}
    if against is not None:
        source["original"] = weights_digest(against, hashed=True)
    packages = (*FORMATS[kind].packages, "requant", "torch", "transformers", "safetensors")
    return {
        "format": kind,
        "source": source,
        "files": {entry.path: entry.sha256 for entry in describe(partial).files},
        "libraries": {package: version(package) for package in packages},
        "layers": dict(found.kinds),
        "layers_exact": found.exact,
        "bytes": found.size,
        "fidelity": {
            name: {**fidelity.in_full(), "tokens": fidelity.tokens, "texts": len(fidelity.texts)}
            for name, fidelity in found.fidelity.items()
        },
    }

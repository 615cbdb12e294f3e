"""A merge outside the pipeline: any Hugging Face folders, the same checks, one atomic result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from requant.canonical import canonical_json
from requant.comparison.batches import Batch
from requant.config.merge import MergeFp16, MergeLimits
from requant.errors import ConfigError
from requant.execution.stage import Metrics
from requant.merging.plan import MergePlan, Mix, per_tensor, plan_merge, scaled, totals, write_plan
from requant.merging.proof import Merged, Setting, prove
from requant.models.config import quantization_of, read_model_config
from requant.models.finite import check_finite
from requant.models.folder import MERGE_NAME
from requant.models.headers import weight_files
from requant.models.new_folder import give_name, refuse_used, sibling_folder
from requant.models.pairing import check_pairing, check_weights
from requant.models.provenance import check_provenance, read_provenance, weights_digest
from requant.models.small_files import refuse_small_files
from requant.outside.json_text import read_object


@dataclass(frozen=True)
class Request:
    """What a person asks to be merged."""

    base: Path
    adapters: Sequence[Path]
    out: Path
    trained_on: Path | None = None
    """The quantized base the adapters were trained on; None where it is at hand no more."""
    mix: Mix | None = None
    scale: float = 1.0
    dtype: str | None = None
    """torch name of the floating dtype to write; None keeps each tensor's own."""
    untie: bool = False
    limits: MergeLimits = MergeFp16().limits


def plan_request(request: Request) -> MergePlan:
    """Check all that can be checked before the work.

    Raises:
        ConfigError: If a folder is missing, quantized or holds NaN, or `out` holds something.
        ContractError: If the folders do not belong together.
    """
    given = [request.base, *request.adapters]
    for folder in given if request.trained_on is None else [*given, request.trained_on]:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: is no folder; give a Hugging Face model or peft adapter")
    if not 0 < request.scale <= 1:
        raise ConfigError(f"--scale {request.scale:g}: expected more than 0, at most 1")
    refuse_used(request.out)
    method = quantization_of(read_model_config(request.base))
    if method is not None:
        raise ConfigError(
            f"--base {request.base}: is quantized ({method}); merging would round the update away. "
            "Give the original in 16 or 32 bit, and this one as --trained-on"
        )
    refuse_small_files(request.base)
    check_weights(request.base)
    plan = plan_merge(request.base, list(request.adapters), untie=request.untie, mix=request.mix)
    digests = {"original": request.base}
    if request.trained_on is not None:
        check_pairing(request.base, request.trained_on)
        digests["trained_on"] = request.trained_on
    # From here on every byte is read.
    check_finite(f"--base {request.base}", weight_files(request.base))
    for folder in request.adapters:
        check_finite(f"--adapter {folder}", [folder / WEIGHTS_NAME])
    if recorded := [folder for folder in request.adapters if read_provenance(folder)]:
        wanted = {role: weights_digest(folder, hashed=True) for role, folder in digests.items()}
        for folder in recorded:
            check_provenance(folder, **wanted)
    return plan


def unproved(request: Request) -> list[Path]:
    """Return the adapters that do not record which model they were trained on."""
    return [folder for folder in request.adapters if not read_provenance(folder)]


def named_base(adapter: Path) -> str:
    """Return what an adapter's configuration calls its base; peft records no digest."""
    config = read_object(adapter / CONFIG_NAME)
    return str(config.get("base_model_name_or_path") or "a model it does not name")


def merge_request(
    request: Request,
    plan: MergePlan,
    batches: Callable[[Path], list[Batch]] | None,
    device: str,
    on_shard: Callable[[int, int], None],
) -> Metrics:
    """Merge beside `out`, measure, and give it its name only when it has passed.

    Args:
        request: What was asked for.
        plan: From `plan_request`.
        batches: Encodes the text parity is measured on with a model's tokenizer; None to skip.
        device: cpu or cuda.
        on_shard: Told of (shards written, shards).

    Returns:
        Figures as the stage merge_fp16; without those of parity where it was skipped.

    Raises:
        ParityError: As the stage merge_fp16; nothing is left then.
    """
    out = request.out.resolve()
    with sibling_folder(out) as work:
        partial = work / "unproved"
        partial.mkdir()
        plan = scaled(plan, request.scale)
        changes = write_plan(plan, partial, dtype=request.dtype, on_shard=on_shard)
        (partial / MERGE_NAME).write_bytes(canonical_json(per_tensor(changes)))
        metrics = totals(changes)
        if batches is not None:
            metrics |= prove(
                Merged(plan, partial, changes),
                (plan_merge(request.base, [one], untie=request.untie) for one in request.adapters),
                Setting(
                    original=request.base,
                    trained_on=request.trained_on or request.base,
                    batches=batches,
                    device=device,
                    limits=request.limits,
                    dtype=request.dtype,
                    work=work,
                ),
            )
        give_name(partial, out)
    return metrics

"""The models of a generation as ordinary folders, byte for byte, also where one was collected."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from requant.config import Config
from requant.errors import ArtifactError, ConfigError
from requant.execution.stage import Reporter, StageContext, empty_folder
from requant.models.device import resolve_device
from requant.models.new_folder import new_folder, refuse_used
from requant.stages import STAGES
from requant.store import StageRecord, Store, all_records, describe, holds, materialise, verify
from requant.store.lines import read_line

BITS_4, BITS_16 = "4bit", "16bit"


def check_out(config: Config, night: int, out: Path, reporter: Reporter) -> dict[str, str]:
    """Write the 4-bit and the 16-bit model of a night into a new folder.

    What was collected is made again by the stage that made it, from what it was made of, and must
    come out equal; nothing in the state folder changes.

    Args:
        config: Names line and state folder.
        night: Its number.
        out: Gets 4bit/ and 16bit/; does not exist, or is empty.
        reporter: Hears how far it is.

    Returns:
        Name of the folder -> digest.

    Raises:
        ConfigError: If `out` holds something, or the line has no such night that made a model.
        ArtifactError: If something cannot be made again, or comes out otherwise.
    """
    refuse_used(out)
    store = Store(config.state.resolve())
    outcomes = read_line(store, config.name).nights
    model = outcomes[night].model if night in outcomes else None
    if model is None:
        made = [str(number) for number, each in outcomes.items() if each.model]
        raise ConfigError(
            f"night {night}: {config.name} has no such night that made a model; those that did: "
            f"{', '.join(made) or 'none'} (requant nights CONFIG)"
        )
    records = {record.digest: record for record in all_records(store)}
    if model not in records:
        raise ArtifactError(
            f"model {model[:12]} of night {night}: has no record in {store.actions}"
        )
    wanted = {BITS_4: model, BITS_16: records[model].key_fields["inputs"]["model"]}
    device = resolve_device(config.runtime.device)
    with new_folder(out) as folder:
        work = folder / "work"
        for name, digest in wanted.items():
            found = _found(store, records, digest, work, device, reporter)
            shutil.copytree(found, folder / name)
        shutil.rmtree(work, ignore_errors=True)
    return wanted


def _found(
    store: Store,
    records: Mapping[str, StageRecord],
    digest: str,
    work: Path,
    device: str,
    reporter: Reporter,
) -> Path:
    """Return the folder of an artifact, verified; one that is not in the store is made again."""
    record = records.get(digest)
    if holds(store, digest):
        verify(store, store.ref(record.kind if record else "model", digest))
        return materialise(store, digest)
    if record is None:
        raise ArtifactError(f"artifact {digest[:12]}: is not in {store.root}, nor is its record")
    out = work / digest
    if out.is_dir():
        return out
    fields = record.key_fields
    stage = STAGES[record.stage]
    section = Config.model_fields[record.stage].annotation
    assert section is not None
    inputs = {
        role: _found(store, records, each, work, device, reporter)
        for role, each in fields["inputs"].items()
        if each in records or holds(store, each)
    }
    reporter.message(f"{record.stage}: {digest[:12]} was collected; it is made again")
    context = StageContext(
        out=empty_folder(out),
        work=empty_folder(work / f"{digest}-work"),
        seed=fields["seed"],
        device=device,
        reporter=reporter,
        store=store,
        line=record.labels.get("pipeline", ""),
    )
    stage.execute(section.model_validate(fields["config"]), context, **inputs)
    if (came := describe(out).digest) != digest:
        raise ArtifactError(
            f"{record.stage}: made again it is {came[:12]}, and it was {digest[:12]}: not the same "
            f"bytes. It was made by version {fields['version']} of the stage with "
            f"{_named(fields['libraries'])}; install those, or put it back from a copy"
        )
    return out


def _named(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))

"""A disk that fills up while a stage publishes: a clear error, nothing half-written, then it works.

The disk is a real one of a few megabytes (tmpfs), which only root can mount.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from requant.errors import TerminalError
from requant.execution.key import stage_key
from requant.execution.launcher import Launch, in_own_process
from requant.execution.perform import perform
from requant.execution.stage import Metrics, Stage, StageContext
from requant.store import Store, verify
from requant.store.gc import find_garbage
from tests.stages.conftest import SilentReporter
from tests.support.verb_stage import Verb

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write(section: Verb, context: StageContext) -> Metrics:
    if section.verb == "plain":
        (context.out / "model.bin").write_bytes(os.urandom(6 * MEGABYTE))
    elif section.verb == "torch":
        import torch

        # As an optimizer's state is kept in a checkpoint.
        torch.save(torch.rand(6 * MEGABYTE // 4), context.out / "optimizer.pt")
    else:
        import torch
        from safetensors.torch import save_file

        save_file({"w": torch.rand(6 * MEGABYTE // 4)}, context.out / "model.safetensors")
    return {}


STAGE = Stage("evaluate", 1, "model", (), write)


@pytest.mark.parametrize("verb", ["plain", "safetensors", "torch"])
@pytest.mark.parametrize("own_process", [False, True])
def test_a_full_disk_is_named_and_leaves_nothing(disk: Path, verb: str, own_process: bool) -> None:
    store = Store(disk / "state")
    section = Verb(verb=verb)
    key = stage_key(STAGE, section, {}, seed=0)
    launch = Launch(log=store.log_path("stage.log"))

    def run() -> str:
        return perform(
            store,
            STAGE,
            key,
            section,
            {},
            seed=0,
            device="cpu",
            reporter=SilentReporter(),
            execute=in_own_process(STAGE, launch) if own_process else None,
        ).digest

    ballast = disk / "ballast"
    ballast.write_bytes(bytes(4 * MEGABYTE))
    with pytest.raises(TerminalError, match=r"the disk of .* is full .*Free space"):
        run()
    assert not list(store.actions.glob("*"))
    assert not list(store.objects.glob("*/*"))
    assert not find_garbage(store).folders
    ballast.unlink()
    verify(store, store.ref("model", run()))

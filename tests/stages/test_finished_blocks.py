"""A quantization that was killed goes on at its block, and gives the bytes of a whole one."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from requant.config.quantizing import RequantizeGptq
from requant.execution.stage import StageContext, empty_folder
from requant.quantization.finished_blocks import finished_blocks
from requant.stages import requantize_gptq
from tests.stages.conftest import SilentReporter, make_context
from tests.support.chain import child_process

FIELDS = {"group_size": 64, "calibration_rows": 16, "fidelity_rows": 4}
CHOICES: list[dict[str, Any]] = [{}, {"gptaq_alpha": 0.25, "symmetric": False, "mse": 0.0}]


class KillAtBlock2(SilentReporter):
    """Ends its process when the first block and the second are done."""

    def progress(self, done: int, total: int, unit: str) -> None:
        if (done, unit) == (2, "blocks"):
            os.kill(os.getpid(), signal.SIGKILL)


def requantize(context: StageContext, choice: dict[str, Any], model: Path, data: Path) -> None:
    requantize_gptq.execute(RequantizeGptq(**{**FIELDS, **choice}), context, model=model, data=data)


@pytest.mark.parametrize("choice", CHOICES, ids=["default", "gptaq"])
def test_a_killed_quantization_goes_on_at_its_block(
    choice: dict[str, Any], tmp_path: Path, tiny_base: Path, tiny_data: Path
) -> None:
    whole = make_context(tmp_path / "whole")
    requantize(whole, choice, tiny_base, tiny_data)
    killed = make_context(tmp_path / "killed")
    struck = replace(killed, reporter=KillAtBlock2())
    assert child_process(requantize, struck, choice, tiny_base, tiny_data) == -signal.SIGKILL
    files = sorted(killed.work.glob("finished-blocks/*/*.safetensors"))
    assert [path.name.partition("-")[0] for path in files] == ["0", "1"]
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)

    again = replace(killed, out=empty_folder(killed.out))
    requantize(again, choice, tiny_base, tiny_data)
    said = again.reporter.messages  # type: ignore[attr-defined]
    assert f"{files[0].name} is damaged: its block is quantized again" in said
    assert "blocks kept of the attempt that was ended: 1" in said
    for path in sorted(whole.out.iterdir()):
        assert (again.out / path.name).read_bytes() == path.read_bytes(), path.name

    with finished_blocks(killed.work / "finished-blocks", "another", SilentReporter()):
        assert not list(killed.work.glob("finished-blocks/*/*"))

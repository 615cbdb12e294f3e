"""What the gate says of models that were broken on purpose, and after how many documents.

    python -m benchmarks.broken_models BASE DATA [--documents N]

BASE is a 16-bit model folder and DATA a night's dataset artifact (of `make real`: prepare_base and
prepare_data). Each broken model stands where tonight's 4-bit model does, held against BASE by the
default gate of a first night. Two minutes a model on two cores.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from requant.config.evaluation import Evaluate
from requant.evaluation.night_verdict import read_verdict
from requant.execution.stage import StageContext
from requant.models.headers import weight_files
from requant.stages import evaluate

if TYPE_CHECKING:
    import torch

Change = Callable[[str, "torch.Tensor"], "torch.Tensor"]


def noise(share: float) -> Change:
    """Add Gaussian noise of `share` of each weight matrix's own spread."""
    import torch

    draw = torch.Generator().manual_seed(0)

    def change(name: str, weight: "torch.Tensor") -> "torch.Tensor":
        if ".layers." not in name or weight.dim() < 2:
            return weight
        drawn = torch.randn(weight.shape, generator=draw)
        return weight + share * float(weight.float().std()) * drawn

    return change


def zeroed(*blocks: int) -> Change:
    """Set the matrices of blocks to zero; of none named, of all."""

    def change(name: str, weight: "torch.Tensor") -> "torch.Tensor":
        if ".layers." not in name or weight.dim() < 2:
            return weight
        return weight if blocks and int(name.split(".")[2]) not in blocks else weight * 0

    return change


BROKEN: Mapping[str, Callable[[], Change]] = {
    "noise of the size of the weights": lambda: noise(1.0),
    "noise of a tenth of it": lambda: noise(0.1),
    "noise of a hundredth of it": lambda: noise(0.01),
    "all blocks zero": zeroed,
    "block 15 zero": lambda: zeroed(15),
}


class _Saying:
    def __init__(self) -> None:
        self.said: list[str] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def message(self, text: str) -> None:
        self.said.append(text)


def broken(base: Path, out: Path, change: Change) -> None:
    """Copy a model folder with changed weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, out, ignore=shutil.ignore_patterns("manifest.json"))
    for file in weight_files(out):
        changed = {
            name: change(name, weight).to(weight.dtype) for name, weight in load_file(file).items()
        }
        save_file(changed, file, metadata={"format": "pt"})


def judge(base: Path, data: Path, name: str, documents: int) -> tuple[str, Any]:
    """Evaluate a broken model beside its base; return the gate's last word and its decision."""
    section = Evaluate(first_documents=documents, examples=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder, out, work = (Path(scratch, each) for each in ("model", "out", "work"))
        out.mkdir()
        work.mkdir()
        broken(base, folder, BROKEN[name]())
        reporter = _Saying()
        context = StageContext(out=out, work=work, seed=0, device="cpu", reporter=reporter)
        evaluate.execute(section, context, data=data, base=base, requantized=folder)
        last = [line for line in reporter.said if line.startswith("the gate")][-1]
        return last, read_verdict(out, section.gate)


def main() -> None:
    """Measure and print; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broken_models")
    for name in ("base", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=BROKEN, default=list(BROKEN))
    chosen = parser.parse_args()
    table = Table("model", "verdict", "documents of a task", "nats a byte")
    for name in chosen.only:
        last, decision = judge(chosen.base, chosen.data, name, chosen.documents)
        changes = [f"{each.task} {each.mean:+.3g}" for each in decision.findings]
        seen = max(each.n for each in decision.findings)
        table.add_row(name, decision.verdict, str(seen), "\n".join(dict.fromkeys(changes)))
        print(f"{name}: {last}", flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

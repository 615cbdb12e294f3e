"""What the stage merge_fp16 is given."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from requant.comparison.batches import batches_for
from requant.config.merge import MergeFp16
from requant.merging.change import Change
from requant.merging.parity import Parity, measure_parity
from requant.stages import merge_fp16
from tests.stages.conftest import make_context

SECTION = MergeFp16(parity_rows=4, trained_max_kl=0.5)


LIMITS = SECTION.limits


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the stage is given."""

    original: Path
    trained_on: Path
    adapter: Path
    data: Path

    def merge(self, folder: Path, section: MergeFp16 = SECTION, **past: Path) -> tuple[Path, dict]:
        context = make_context(folder)
        return context.out, merge_fp16.execute(section, context, **vars(self), **past)

    def measured(
        self,
        merged: Path,
        changes: Mapping[str, Change],
        adapters: Sequence[tuple[Path, float]] = (),
    ) -> Parity:
        return measure_parity(
            merged=merged,
            changes=changes,
            original=self.original,
            trained_on=self.trained_on,
            adapters=adapters or [(self.adapter, 1.0)],
            batches=batches_for(merged, self.data / "heldout.jsonl", 4),
            device="cpu",
        )

"""What is compared: requant's policies, what people do by hand, and training on everything anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.nights.texts import NIGHTS
from requant.config import Config

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A way to spend nine nights."""

    name: str
    policy: str = "fresh"
    replay: Fields = field(default_factory=dict)
    """prepare_data.replay."""
    train_adapter: Fields = field(default_factory=dict)
    merge_fp16: Fields = field(default_factory=dict)
    everything: bool = False
    """Every night trains the original on all rows so far. No gate refuses it: this is the upper
    bound in quality, and knows which night is poisoned."""
    kind: Literal["line", "naive"] = "line"


REPLAY = {"rows": 0.1, "general": 0.09}
"""Shares of a night's rows. The first of six nights has no earlier ones: they train on 7.3 times
the new rows of one, and the upper bound on 21 times as many."""
WRITTEN = {"written": 0.19}
PULL = {"pull": {"kind": "kl", "weight": 0.3}}
ARMS = (
    Arm("fresh"),
    Arm("continue", policy="continue"),
    Arm("stack", policy="stack"),
    Arm("chain", policy="chain"),
    Arm("continue, replay", policy="continue", replay=REPLAY),
    Arm("continue, written", policy="continue", replay=WRITTEN),
    Arm(
        "continue, replay, KL",
        policy="continue",
        replay=REPLAY,
        train_adapter=PULL,
    ),
    Arm("continue, KL", policy="continue", train_adapter=PULL),
    Arm("chain, replay", policy="chain", replay=REPLAY),
    Arm("averaged", merge_fp16={"past_nights": 1, "combine": "linear"}),
    Arm("naive", kind="naive"),
    Arm("everything", everything=True),
)
"""By name: policy, then what is added to it. `averaged` is fresh, merged half and half with the
adapter of the night before."""


@dataclass(frozen=True)
class Sizes:
    """What one base is given."""

    base: Fields
    """prepare_base.source."""
    rows: int
    """New rows of a night."""
    measured: int
    """Held-out rows of each night that generations are measured on, and pieces of old text."""
    train: Fields
    """train_adapter: rank and so on."""
    optimisation: Fields
    requantize: Fields
    written: Fields
    """write_replay: what the base writes, once for all lines."""
    evaluation_rows: int


SIZES = {
    "tiny": Sizes(
        base={
            "kind": "stdlib",
            "vocab_size": 4096,
            "hidden_size": 192,
            "layers": 3,
            "heads": 3,
            "kv_heads": 1,
            "intermediate_size": 512,
            "steps": 240,
            "batch_size": 8,
            "sequence_length": 192,
            "learning_rate": 2.0e-3,
        },
        rows=400,
        measured=40,
        train={"rank": 16, "alpha": 32},
        optimisation={"epochs": 1, "learning_rate": 1.0e-3, "max_length": 128},
        requantize={"group_size": 64, "calibration_rows": 32, "calibration_length": 128},
        written={"rows": 128, "max_tokens": 64},
        evaluation_rows=192,
    ),
    "smollm2": Sizes(
        base={"kind": "folder", "path": ".requant/real/smollm2-135m"},
        rows=400,
        measured=24,
        train={"rank": 16, "alpha": 32},
        optimisation={"epochs": 1, "learning_rate": 4.0e-4, "max_length": 128},
        requantize={"group_size": 64, "calibration_rows": 96, "calibration_length": 256},
        written={"rows": 256, "max_tokens": 256},
        evaluation_rows=128,
    ),
}


def line_of(arm: Arm, sizes: Sizes, state: Path, rows: Path, seed: int) -> Config:
    """Configure the line of an arm.

    Args:
        arm: Which.
        sizes: Of the base.
        state: Folder that the arms share: what two of them do alike is done once.
        rows: Folder that the nights' rows come into.
        seed: Of everything.
    """
    nights = len(NIGHTS)
    name = arm.name.replace(", ", "-").replace(" ", "-").lower()
    return Config.model_validate(
        {
            "name": f"{name}-{seed}",
            "seed": seed,
            "state": str(state),
            "prepare_base": {"source": sizes.base},
            "write_replay": {"enabled": "written" in arm.replay, **sizes.written},
            "collect_rows": {
                "enabled": True,
                "sources": [{"kind": "files", "name": "nights", "paths": [str(rows)]}],
            },
            "extend_ledger": {
                "heldout_fraction": 0.4,
                "consolidate_every": 1 if arm.everything else None,
                "reservoir_rows": nights * sizes.rows,
            },
            "generations": {"policy": arm.policy},
            "prepare_data": {
                "source": {"kind": "collected"},
                "replay": arm.replay,
                "max_evaluation_rows": sizes.evaluation_rows,
            },
            "train_adapter": {
                **sizes.train,
                **arm.train_adapter,
                "optimisation": sizes.optimisation,
            },
            "merge_fp16": arm.merge_fp16,
            "continue_train": {"enabled": False, "optimisation": {"max_steps": 1}},
            "requantize_gptq": sizes.requantize,
            "evaluate": {
                "batch_size": 16,
                "steps_between": False,
                "examples": 0,
                # The chance of a harmful promotion is shared by the nights there are.
                "gate": {"tests_a_year": nights},
            },
            "promote": {"auto": True},
            "runtime": {"device": "cpu"},
        }
    )

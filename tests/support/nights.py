"""A small and real night of artifacts and records, for tests of lineage, report and tracking."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from requant.canonical import digest_of
from requant.evaluation.artifact import POOLS, SAMPLES
from requant.evaluation.samples import write_samples
from requant.evaluation.scores import TaskScores
from requant.store import StageRecord, Store, publish, write_record

Samples = Mapping[str, Mapping[str, TaskScores]]

CHAIN: dict[str, tuple[str, dict[str, str], dict[str, float]]] = {
    "prepare_base": ("model", {}, {"loss": 3.9, "parameters": 5_200_000.0}),
    "prepare_data": ("dataset", {}, {"train_rows": 640.0, "heldout_rows": 64.0}),
    "quantize_base": ("model", {"base": "prepare_base"}, {"kl": 0.02, "agreement": 0.97}),
    "train_adapter": (
        "adapter",
        {"base": "quantize_base", "data": "prepare_data"},
        {"loss_first": 3.21, "loss_last": 2.87},
    ),
    "merge_fp16": (
        "model",
        {"original": "prepare_base", "adapter": "train_adapter", "data": "prepare_data"},
        {"parity_kl": 1.2e-5, "trained_kl": 0.015, "trained_agreement": 0.986},
    ),
    "continue_train": (
        "model",
        {"model": "merge_fp16", "data": "prepare_data"},
        {"loss_first": 2.87, "loss_last": 2.66},
    ),
    "requantize_gptq": (
        "model",
        {"model": "continue_train", "data": "prepare_data"},
        {"kl": 0.03, "agreement": 0.981},
    ),
    "evaluate": (
        "evaluation",
        {"base": "prepare_base", "requantized": "requantize_gptq", "data": "prepare_data"},
        {
            "base/describe_choice/acc": 0.31,
            "base/docstrings/word_perplexity": 88.5,
            "requantized/describe_choice/acc": 0.41,
            "requantized/docstrings/word_perplexity": 61.2,
        },
    ),
}
"""stage -> kind, inputs by role, figures; every artifact's bytes depend on those above it"""
EVERY = CHAIN | {
    "write_replay": (
        "dataset",
        {"base": "prepare_base"},
        {"written_rows": 256.0, "tried_rows": 301.0, "left_out_rows": 45.0, "missing_rows": 0.0},
    ),
    "collect_rows": (
        "dataset",
        {"base": "prepare_base"},
        {"read_rows": 900.0, "known_rows": 180.0, "new_rows": 720.0, "bad_rows": 2.0},
    ),
    "extend_ledger": (
        "dataset",
        {"rows": "collect_rows"},
        {"new_rows": 720.0, "taken": 640.0, "held_out": 64.0, "waits": 0.0, "rows": 720.0},
    ),
    "train_on_grid": (
        "model",
        {"base": "quantize_base", "original": "prepare_base", "data": "prepare_data"},
        {"heldout_loss_before": 2.9, "heldout_loss_saved": 2.8, "changed_share": 0.004},
    ),
}
"""With the stages of other nights: of what the base writes, of a ledger of rows, and the one in
place of half of these."""


def make_night(
    store: Store, content: str = "first", champion: str = "", scores: Samples | None = None
) -> dict[str, StageRecord]:
    """Publish an artifact per stage and write its record.

    Args:
        store: Where to.
        content: Changes what data holds.
        champion: Digest of the model that served when the night was evaluated.
        scores: Model -> task -> scores of documents, for the samples of the evaluation.
    """
    records: dict[str, StageRecord] = {}
    for stage, (kind, roles, metrics) in CHAIN.items():
        inputs = {role: records[source].digest for role, source in roles.items()}
        if stage == "evaluate" and champion:
            inputs["champion"] = champion
        if stage == "prepare_base":
            inputs["corpus"] = digest_of("text outside the store")
        fields = {
            "stage": stage,
            "version": 1,
            "config": {
                "rank": 16,
                "optimisation": {"max_steps": 40},
                "targets": ["q_proj"],
                "tasks": [],
                "limit": None,
                "first_documents": 64,
            },
            "inputs": inputs,
            "libraries": {"python": "3.11"},
            "seed": 7,
        }
        draft = store.tmp / stage
        draft.mkdir(parents=True)
        text = content if stage == "prepare_data" else "same"
        written = json.dumps([stage, text, inputs])
        names = {"adapter": "adapter_config.json", "evaluation": "scores.json"}
        Path(draft, names.get(kind, "config.json")).write_text(written)
        Path(draft, "model.safetensors").write_bytes(digest_of(written).encode())
        if stage == "evaluate" and scores:
            _write_samples(draft, scores)
        curves = {"loss": tuple((step, 4.0 - step / 40) for step in range(0, 41, 4))}
        records[stage] = StageRecord(
            stage=stage,
            key=digest_of(fields),
            key_fields=fields,
            kind=kind,
            digest=publish(store, kind, draft).digest,
            metrics=metrics,
            curves=curves if "loss_first" in metrics else {},
            started=time.time(),
            seconds=12.5,
            labels={},
        )
        write_record(store, records[stage])
    return records


def _write_samples(draft: Path, scores: Samples) -> None:
    (draft / SAMPLES).mkdir()
    pools: dict[str, int] = {}
    for model, tasks in scores.items():
        for task, found in tasks.items():
            write_samples(draft / SAMPLES / f"{model}.{task}.parquet", task, found)
            pools[task] = len(found.documents)
    (draft / POOLS).write_text(json.dumps(pools))

"""What the artifacts of a night say, read for its pages."""

import json
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger

from requant.evaluation.artifact import MODELS, read_paired, read_scores
from requant.evaluation.examples import read_examples
from requant.evaluation.survival import Survival, survival
from requant.models.folder import MERGE_NAME
from requant.report.night import Findings
from requant.store import StageRecord, Store, materialise, read_file
from tasks.promote import Promotion


def findings_of(
    store: Store, records: list[StageRecord], promotion: Promotion | None = None
) -> Findings:
    """Read what the pages show besides the records.

    Args:
        store: Where the artifacts lie.
        records: Of the night.
        promotion: What came of its model.
    """
    decision = promotion.decision if promotion else None
    merged = _merged_tensors(store, records)
    folders = [materialise(store, item.digest) for item in records if item.stage == "evaluate"]
    if not folders:
        return Findings(merged=merged, decision=decision)
    scores = read_scores(folders[0])
    return Findings(
        # The file is canonical JSON, sorted by name; a reader follows the chain.
        scores={model: scores[model] for model in MODELS if model in scores},
        ledger=survival(read_paired(folders[0])),
        examples=read_examples(folders[0]),
        merged=merged,
        decision=decision,
    )


def ledger_of(found: Callable[[], Findings]) -> Survival:
    """Read which step cost what; what cannot be read is said, and fails nothing."""
    try:
        return found().ledger or survival(())
    except Exception:
        get_run_logger().exception("which step cost what could not be read")
        return survival(())


def _merged_tensors(store: Store, records: list[StageRecord]) -> list[dict[str, Any]]:
    for record in records:
        if (
            record.stage == "merge_fp16"
            and (materialise(store, record.digest) / MERGE_NAME).exists()
        ):
            return list(json.loads(read_file(store, record.digest, MERGE_NAME)))
    return []

"""The dataset artifact: where what lies in its folder.

train.jsonl      rows of tonight, in the order of the night
heldout.jsonl    rows that are never trained on
general.jsonl    old text that is neither trained on nor measured on, for calibration
evaluation/      one lm-eval task a pair of files: <task>.yaml and <task>.jsonl
written.jsonl    rows that the base wrote itself, alone in the artifact of write_replay
template.json    the rules by which conversations are rendered
data_card.json   what the rows were: formats, ignored fields, turns without loss
"""

from pathlib import Path

TRAIN = "train.jsonl"
HELDOUT = "heldout.jsonl"
GENERAL = "general.jsonl"
WRITTEN = "written.jsonl"
EVALUATION = "evaluation"
RULES_NAME = "template.json"
CARD_NAME = "data_card.json"


def task_documents(data: Path, task: str) -> Path:
    """Return the file of a task's documents, one JSON object a line."""
    return data / EVALUATION / f"{task}.jsonl"


def documents_of_tasks(data: Path) -> list[Path]:
    """List the files of documents of all tasks."""
    return sorted((data / EVALUATION).glob("*.jsonl"))

"""One model's scores on the documents of a task as a Parquet file, with what they were made by."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from requant.evaluation.artifact import SAMPLES, read_pools
from requant.evaluation.scores import DocumentScore, TaskScores, Terms
from requant.names import file_name

TASK = "requant.task"
TERMS = "requant.terms"


def write_model(evaluation: Path, model: str, tasks: Mapping[str, TaskScores]) -> None:
    """Write samples/<model>.<task>.parquet of each task that was scored document by document.

    Args:
        evaluation: Existing folder.
        model: Its role.
        tasks: Task -> scores.
    """
    (evaluation / SAMPLES).mkdir(exist_ok=True)
    for task, scores in tasks.items():
        if scores.terms is not None:
            write_samples(evaluation / SAMPLES / f"{model}.{file_name(task)}.parquet", task, scores)


def write_samples(path: Path, task: str, scores: TaskScores) -> None:
    """Write a row a document; task and terms stand in the schema's metadata.

    Args:
        path: Of the new file; the same scores give the same bytes.
        task: Its name.
        scores: With a score for each document.
    """
    import pyarrow
    from pyarrow import parquet

    rows = [asdict(document) for document in scores.documents]
    assert scores.terms is not None  # where there is a score for each document
    schema = pyarrow.schema(
        [
            ("id", pyarrow.int64()),
            ("document", pyarrow.string()),
            ("prompt", pyarrow.string()),
            ("score", pyarrow.float64()),
            ("fine", pyarrow.float64()),
            ("cluster", pyarrow.string()),
        ],
        metadata={TASK: task, TERMS: json.dumps(asdict(scores.terms), sort_keys=True)},
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def read_samples(path: Path) -> tuple[str, TaskScores]:
    """Read a task's name and its documents' scores; its figures over all of them are elsewhere."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    terms = Terms(**json.loads(metadata[TERMS]))
    documents = tuple(DocumentScore(**row) for row in table.to_pylist())
    return metadata[TASK], TaskScores({}, documents, terms)


def read_models(evaluation: Path, model: str = "*") -> dict[str, dict[str, TaskScores]]:
    """Read the samples of an evaluation, of all models or one: model -> task -> scores."""
    found: dict[str, dict[str, TaskScores]] = {}
    for path in sorted((evaluation / SAMPLES).glob(f"{model}.*.parquet")):
        task, scores = read_samples(path)
        found.setdefault(path.name.partition(".")[0], {})[task] = scores
    return found


def count_documents(evaluation: Path, model: str, first: int) -> int:
    """Count the documents that a model's figures are of, over all tasks, by the files' footers.

    Args:
        evaluation: The artifact.
        model: Its role.
        first: Documents of a generated task that figures are of; the gate may have seen more.
    """
    from pyarrow import parquet

    generated = {file_name(task) for task in read_pools(evaluation)}
    counts = {
        path.name.removeprefix(f"{model}.").removesuffix(".parquet"): parquet.read_metadata(
            path
        ).num_rows
        for path in (evaluation / SAMPLES).glob(f"{model}.*.parquet")
    }
    return sum(min(n, first) if task in generated else n for task, n in counts.items())

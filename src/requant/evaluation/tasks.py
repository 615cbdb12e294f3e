"""lm-eval tasks made from a held-out part: one YAML and one JSONL file each."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.data.formats import Row
from requant.data.plain_text import chunks
from requant.data.rows import answer, cluster, question, write_jsonl

OPTIONS = 4
AFTER_QUESTION = "multiple_choice"
"""lm-eval's output type of an answer after its question: a choice of one. So it goes through the
chat template as a choice of four does, and what that asks of the right one is not asked again."""
AFTER_QUESTION_VERSION = 3.0
"""Version of a task of answers after their questions; before it, under the same names, they were
predicted from nothing."""
LIKE_LENGTH = 4 * OPTIONS
"""Answers of like length among which the wrong ones are drawn."""


def write_perplexity_task(folder: Path, name: str, texts: Sequence[Mapping[str, Any]]) -> None:
    """Write a task that measures how well a model predicts each text.

    An answer is predicted after its question: from nothing, to have learned what answers look like
    is worth as much as to have learned which one it is. Texts of no question are predicted from
    nothing, window by window, however long they are; beside answers, after an empty question.

    Args:
        folder: Gets `<name>.yaml` and `<name>.jsonl`.
        name: Of the task.
        texts: A `text` each, the `question` that it answers, and its `cluster` where it belongs to
            others.
    """
    asked = any("question" in text for text in texts)
    # `datasets` reads null where a line lacks a field of others.
    question = {"question": ""} if asked else {}
    documents = [{"id": index, **question, **text} for index, text in enumerate(texts)]
    _write(
        folder,
        name,
        documents,
        {
            "output_type": AFTER_QUESTION if asked else "loglikelihood_rolling",
            "doc_to_text": "question" if asked else "",
            "doc_to_target": 0 if asked else "text",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
        },
        version=AFTER_QUESTION_VERSION if asked else 2.0,
    )


def write_choice_task(folder: Path, name: str, documents: Sequence[dict[str, Any]]) -> None:
    """Write a multiple-choice task.

    Args:
        folder: Gets `<name>.yaml` and `<name>.jsonl`.
        name: Of the task.
        documents: From `choice_documents`.
    """
    _write(
        folder,
        name,
        documents,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            # Chance level is 1 / OPTIONS. Undivided by the option's characters the shortest one
            # wins, whatever a model knows.
            "metric_list": [
                {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
            ],
        },
    )


@dataclass(frozen=True)
class Documents:
    """What the tasks made from a night's data ask, before it is written."""

    heldout: list[dict[str, Any]]
    """As `answer_documents`."""
    choices: list[dict[str, Any]]
    """As `choice_documents`."""
    old: list[dict[str, Any]]


def night_documents(heldout: Sequence[Row], old_text: str, limit: int, seed: int) -> Documents:
    """Make the documents of the evaluation tasks from held-out rows and old text.

    Args:
        heldout: In the order of the night.
        old_text: Plain text.
        limit: Documents of a task at most.
        seed: Of the draws.
    """
    pieces = list(dict.fromkeys(chunks(old_text)))
    return Documents(
        heldout=answer_documents(heldout[:limit]),
        choices=choice_documents(heldout, limit, seed),
        old=[
            {"text": piece}
            for piece in random.Random(f"{seed}-old").sample(pieces, min(limit, len(pieces)))
        ],
    )


def answer_documents(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Take the answers whose perplexity is measured: {question, text, cluster}.

    A plain text has no question; a bare tool call says nothing that could be measured.
    """
    return [
        {**({"question": asked} if (asked := question(row)) else {}), "text": text, **cluster(row)}
        for row in rows
        if (text := answer(row))
    ]


def units(documents: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Put the places of one cluster's documents together; a document of none stands alone."""
    found: dict[str | int, list[int]] = {}
    for place, each in enumerate(documents):
        found.setdefault(each.get("cluster", place), []).append(place)
    return list(found.values())


def choice_documents(rows: Sequence[Row], limit: int, seed: int) -> list[dict[str, Any]]:
    """Ask which of four answers belongs to a question.

    The three wrong ones are answers of other rows, drawn by `seed` from those of like length, so
    that the length of an answer does not give it away.

    Returns:
        At most `limit` of {id, cluster, question, choices, answer}; none where fewer than four
        different answers exist.
    """
    # A plain text asks nothing, a bare tool call answers nothing.
    rows = [row for row in rows if question(row) and answer(row)]
    pool = sorted({answer(row) for row in rows}, key=lambda text: (len(text), text))
    if len(pool) < OPTIONS:
        return []
    documents = []
    for index, row in enumerate(rows[:limit]):
        draw = random.Random(f"{seed}-choice-{index}")
        right = answer(row)
        wrong = draw.sample(_of_like_length(pool, right, draw), OPTIONS - 1)
        choices = draw.sample([right, *wrong], OPTIONS)
        documents.append(
            {
                "id": index,
                **cluster(row),
                "question": question(row),
                "choices": choices,
                "answer": choices.index(right),
            }
        )
    return documents


def _of_like_length(pool: Sequence[str], right: str, draw: random.Random) -> list[str]:
    """Take the others of a window of the pool, in which the right answer stands anywhere.

    Those nearest to it would be longer and shorter ones in equal shares, and the right answer the
    second or third of four by length more often than by chance.

    Args:
        pool: Different texts by length.
        right: One of them.
        draw: Says where in the window it stands.
    """
    size = min(LIKE_LENGTH, len(pool))
    place = pool.index(right)
    first = min(max(place - draw.randrange(size), 0), len(pool) - size)
    return [text for text in pool[first : first + size] if text != right]


def _write(
    folder: Path,
    name: str,
    documents: Sequence[dict[str, Any]],
    fields: dict[str, Any],
    version: float = 2.0,
) -> None:
    import yaml

    write_jsonl(folder / f"{name}.jsonl", documents)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **fields,
        "metadata": {"version": version},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))

"""The standard library's text: complete enough, reproducible, divided without overlap."""

import subprocess
import sys

from requant.config.data import StdlibData
from requant.corpus import (
    base_conversations,
    base_documents,
    bucket,
    corpus_digest,
    docstrings,
    in_base,
    topics,
)
from requant.data.plain_text import CHUNK_CHARACTERS, chunks
from requant.data.rows import Split, answer
from requant.data.sources import split_by_module


def night(number: int, nights: int = 3) -> Split:
    source = StdlibData(kind="stdlib", night=number, nights=nights)
    return split_by_module(docstrings(), source, 0.1)


def modules(split_part: tuple[dict[str, list[dict[str, str]]], ...]) -> set[str]:
    lines = (row["messages"][0]["content"].splitlines()[0] for row in split_part)
    return {line.removeprefix("In the Python module ").split(",")[0] for line in lines}


def test_text_is_found_without_importing_what_it_describes() -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from requant.corpus import docstrings, topics\n"
        "found = docstrings(); topics()\n"
        "print(len(found), 'turtle' in sys.modules, 'pydoc_data.topics' in sys.modules)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(output[0]) > 3000
    assert output[1:] == ["False", "False"]


def test_a_known_docstring_is_read_as_written() -> None:
    (found,) = [
        item for item in docstrings() if (item.module, item.name) == ("bisect", "insort_left")
    ]
    assert found.signature == "def insort_left(a, x, lo=0, hi=None, *, key=None)"
    assert found.summary == "Insert item x in list a, and keep it sorted assuming a is sorted."
    assert sum(len(text) for _, text in topics()) > 300_000


def test_the_digest_is_the_same_in_another_process() -> None:
    script = "from requant.corpus import corpus_digest; print(corpus_digest())"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == corpus_digest()


def test_buckets_are_spread_evenly() -> None:
    points = [bucket(str(number), "test") for number in range(4000)]
    assert all(0 <= point < 1 for point in points)
    assert all(
        abs(sum(low <= point < low + 0.25 for point in points) - 1000) < 120
        for low in (0, 0.25, 0.5, 0.75)
    )


def test_no_module_is_in_two_of_base_heldout_and_nights() -> None:
    nights = [night(number) for number in (1, 2, 3)]
    parts = [modules(nights[0].heldout), *(modules(split.train) for split in nights)]
    base = {item.module for item in docstrings() if in_base(item.module)}
    assert all(parts)
    assert sum(map(len, parts)) + len(base) == len(set.union(base, *parts))
    assert all(split.heldout == nights[0].heldout for split in nights)


def test_no_heldout_answer_is_a_training_answer_of_any_night_or_the_base() -> None:
    heldout = {answer(row) for row in night(1).heldout}
    trained = {answer(row) for number in (1, 2, 3) for row in night(number).train}
    known = {item.summary for item in docstrings() if in_base(item.module)}
    assert heldout
    assert not heldout & trained
    assert not heldout & known
    assert not heldout & {response for _, response in base_conversations()}
    assert len(base_documents()) > 100


def test_chunks_keep_the_words_and_stay_short() -> None:
    text = "\n\n".join(text for _, text in topics())
    pieces = chunks(text)
    assert " ".join(pieces).split() == text.split()
    assert max(map(len, pieces)) <= CHUNK_CHARACTERS + len("\n\n")

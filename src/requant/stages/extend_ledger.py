"""extend_ledger: what becomes of each new row, on top of the ledger of the night before."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from requant.config.collecting import ExtendLedger
from requant.data.artifact import RULES_NAME
from requant.data.lines import ROW
from requant.data.overlap import even, texts_of
from requant.data.plain_text import read_text, require_file
from requant.data.rows import is_held_out
from requant.errors import ConfigError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.ledger.batch import Batch
from requant.ledger.decide import Numbered, decide, extended, verdicts_in_words
from requant.ledger.document import EMPTY, read_decisions, read_ledger, rows_of, write_ledger
from requant.ledger.extend import extend
from requant.ledger.fates import DECIDED
from requant.ledger.grams import measured_grams, measured_texts
from requant.ledger.index import Index, read_index, write_index
from requant.ledger.keyed import keyed
from requant.ledger.near import algorithm, key_threshold
from requant.ledger.queue import waiting_rows, with_released
from requant.ledger.reservoir import brought_up
from requant.ledger.rows import ROWS, CollectedRow, read_card, read_rows
from requant.ledger.verdicts import look_up, shared_runs
from requant.ledger.words import Flags, Keys
from requant.outside.json_text import MalformedJson, parse_json
from requant.store import materialise
from requant.store.manifest import hash_file
from requant.store.objects import read_manifest

EVALUATION_TEXT = "extend_ledger.evaluation_text"
PLENTY = 3
"""Times `max_rows` of waiting rows that are looked at: some are held out, some contaminated."""


def execute(
    section: ExtendLedger, context: StageContext, *, rows: Path, ledger: Path | None = None
) -> Metrics:
    """Decide on every new row, and on those that waited, and index the new ones.

    Args:
        section: What repeats another row, and how many a night takes.
        context: Of the stage; its store holds the ledgers and rows of the line.
        rows: Artifact of collect_rows.
        ledger: Of the last night; None in the first.

    Returns:
        new_rows; how many rows met which decision tonight (taken, held_out, ...); waits: rows that
        wait now; rows: all that the line has read; candidates_left_out: pairs of rows of one
        template that were not compared.

    Raises:
        ContractError: If the index was made in another way than tonight's would be.
        ConfigError: If a file of `evaluation_text` does not exist or is no text.
        ArtifactError: If the store does not hold a ledger of the line, or its rows.
    """
    store = context.store
    assert store is not None

    def open_artifact(digest: str) -> Path:
        return materialise(store, digest) if digest else context.out

    threshold = key_threshold(section.near_duplicates)
    near = section.near_duplicates is not None
    before, parent, index = EMPTY, None, Index(algorithm(threshold))
    if ledger is not None:
        before, parent = read_ledger(ledger), read_manifest(ledger).digest
        index = read_index(ledger, parent, threshold)
    outcomes = read_card(rows).outcomes
    before = with_released(before, outcomes)
    texts = measured_texts(evaluation_text(section))

    collected = [row for group in read_rows(rows / ROWS) for row in group]
    new = {before.rows + place: row for place, row in enumerate(collected)}
    batch = keyed(new, threshold)
    # Text that will be held out, tonight or when its turn comes, is kept from training now.
    sides = _sides(collected, section.heldout_fraction, context.seed)
    verdicts = look_up(index, open_artifact, batch, sides, _measured(texts, _of(new, sides)))
    digests = (*before.ledgers, *([parent] if parent else []))
    most = None if section.max_rows is None else PLENTY * section.max_rows + section.min_new_rows
    waiting = list(waiting_rows(store, digests, before, most))
    waiting_batch = keyed({each.number: each.row for each in waiting}, threshold)

    def shared_by(each: Batch, held: Sequence[Numbered]) -> dict[int, int]:
        counts = shared_runs(index, open_artifact, each, _measured(texts, held))
        return {int(each.numbers[at]): int(counts[at]) for at in np.flatnonzero(counts)}

    def shared(held: Sequence[Numbered]) -> dict[int, int]:
        return shared_by(batch, held) | shared_by(waiting_batch, held)

    tonight = decide(
        section, context.seed, new, verdicts_in_words(batch, verdicts, near), waiting, shared
    )
    kept = np.isin(batch.numbers, tonight.kept)
    held = dict([*_of(new, sides & kept), *tonight.held_out])
    measured = measured_grams([*held.values()])
    whole = extend(index, open_artifact, batch, verdicts, kept, measured, context.out)
    write_index(whole, context.out)

    def trained_in(night: int) -> list[int]:
        decided = read_decisions(materialise(store, digests[night - 1]), ("taken",))
        return [each.number for each in decided]

    poured = brought_up(
        before.reservoir, outcomes, trained_in, section.reservoir_rows, context.seed
    )
    old = dict(rows_of(store, before, (number for number, _ in poured.rows)))
    # What is held out or evaluated by now is not replayed, although it was trained on once.
    by_now = shared_by(keyed(old, threshold), tonight.held_out)
    reservoir = poured.model_copy(
        update={"rows": tuple(row for row in poured.rows if row[0] not in by_now)}
    )
    accepted = sum(verdict == "accepted" for verdict in outcomes.values())
    every = section.consolidate_every
    after = extended(
        before,
        parent,
        read_manifest(rows).digest,
        new,
        waiting,
        tonight,
        reservoir,
        consolidates=every is not None and accepted % every == every - 1,
    )
    write_ledger(context.out, after, tonight.decisions)
    shutil.copyfile(rows / RULES_NAME, context.out / RULES_NAME)
    counts = Counter(decision.decided for decision in tonight.decisions)
    left_out = verdicts.left_out
    if left_out:
        context.reporter.message(
            f"{left_out} pairs of rows that look alike in part were not compared: too many rows "
            "are of one template"
        )
    if counts["near_duplicate"] > len(new) / 2:
        context.reporter.message(
            f"{counts['near_duplicate']} of {len(new)} new rows nearly repeat others (requant data "
            "show CONFIG near_duplicate): rows that share a long instruction look alike; put it "
            "into a system message, which is not compared"
        )
    return {
        "new_rows": float(len(new)),
        **{decided: float(counts[decided]) for decided in DECIDED},
        "waits": float(sum(queued.rows for queued in after.queue)),
        "rows": float(after.rows),
        "reservoir_rows": float(len(after.reservoir.rows)),
        "consolidates": float(after.consolidates),
        "candidates_left_out": float(left_out),
    }


def content_digests(section: ExtendLedger) -> dict[str, str]:
    """Return role -> digest of the files that rows are held against.

    Raises:
        ConfigError: If one does not exist.
    """
    for path in section.evaluation_text:
        require_file(EVALUATION_TEXT, path)
    return {
        f"evaluation_text.{place}": hash_file(path)
        for place, path in enumerate(section.evaluation_text)
    }


def _sides(collected: Sequence[CollectedRow], fraction: float, seed: int) -> Flags:
    """Tell which rows are held out when their turn comes, bool [rows]."""
    return np.array(
        [row.row is not None and is_held_out(row.row, fraction, seed) for row in collected], bool
    )


def _measured(texts: Keys, rows: Sequence[Numbered]) -> Keys:
    return np.sort(np.concatenate([texts, measured_grams([row for _, row in rows])]))


def _of(new: dict[int, CollectedRow], chosen: Flags) -> list[Numbered]:
    return [
        (number, row.row)
        for (number, row), is_chosen in zip(new.items(), chosen, strict=True)
        if is_chosen and row.row is not None
    ]


def evaluation_text(section: ExtendLedger) -> set[str]:
    """Return the texts of an evaluation: every text in a .jsonl, every paragraph of other files.

    Raises:
        ConfigError: If a file does not exist or is no text.
    """
    texts: set[str] = set()
    for path in section.evaluation_text:
        text = read_text(EVALUATION_TEXT, path)
        if path.suffix != ".jsonl":
            texts |= {even(part) for part in re.split(r"\n\s*\n", text) if part.strip()}
            continue
        for number, row in enumerate(filter(str.strip, text.split("\n")), 1):
            try:
                texts |= texts_of((), [parse_json(row.encode(), ROW)])
            except MalformedJson as error:
                raise ConfigError(
                    f"{EVALUATION_TEXT}: {path}, line {number}: is not JSON ({error}); write it "
                    "anew, or rename the file to .txt"
                ) from error
    return texts


STAGE = Stage(
    name="extend_ledger",
    version=1,
    kind="dataset",
    libraries=("pyarrow", "numpy", "rensa", "xxhash"),
    execute=execute,
    content_digests=content_digests,
    artifact="ledger",
    headline=(worded("{} rows taken, {} held out", "taken", "held_out"),),
)

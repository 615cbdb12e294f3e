"""The nights of one arm under one seed, each result written as it comes: a killed run goes on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.nights.arms import ARMS, SIZES, Arm, line_of
from benchmarks.nights.lines import line_night
from benchmarks.nights.naive import naive_night
from benchmarks.nights.scores import documents_of, scores
from benchmarks.nights.texts import DOMAINS, NIGHTS, night_rows, repetitions
from requant.canonical import canonical_json
from requant.data.artifact import HELDOUT
from requant.data.overlap import normalised
from requant.data.rows import json_lines
from requant.data.samples import read_rows
from requant.store import Store, all_records
from requant.store.durable import write_durably
from requant.store.lines import Verdict

FIRST = ARMS[0]
"""The arm whose ledger divides the rows, by text and seed: every other one divides them alike."""


def run_arm(folder: Path, base: str, arm: Arm, seed: int) -> None:
    """Run the nights of an arm that have not been run.

    Args:
        folder: Of the benchmark: packages, state, results.
        base: A name of `SIZES`.
        arm: Which.
        seed: Of everything.
    """
    sizes, place = SIZES[base], folder / base / f"seed-{seed}"
    rows = place / arm.name / "rows"
    config = line_of(arm, sizes, folder / base / "state", rows, seed)
    texts = night_rows(folder / "packages", sizes.rows, seed)
    results = place / arm.name / "nights.jsonl"
    done = read_nights(results)
    for number, brings in enumerate(NIGHTS, 1):
        if number <= len(done):
            continue
        datasets = datasets_of(place, before=number)
        heldout = [row for data in datasets.values() for row in read_rows(data / HELDOUT)]
        if brings == "repetitions":
            seen = [row for name in NIGHTS[: number - 1] for row in texts[name]]
            brought = repetitions(seen, heldout, sizes.rows, seed)
        else:
            brought = texts[brings]
        if arm.kind == "naive":
            own = datasets_of(place, before=len(NIGHTS) + 1)
            measured = {normalised(row) for d in own.values() for row in read_rows(d / HELDOUT)}
            kept = [row for row in brought if normalised(row) not in measured]
            result = naive_night(config, place / arm.name, _bases(config.state), number, kept)
        else:
            told = _told(brings) if arm.everything else None
            result = line_night(config, rows, number, brought, told)
        done.append({"night": number, "brings": brings, **asdict(result)})
        write_durably(results, json_lines(done))
        print(f"{arm.name}, seed {seed}, night {number} ({brings}): {result.verdict}", flush=True)


def measure_arm(folder: Path, base: str, arm: Arm, seed: int) -> None:
    """Score what served after each night on what every night held out, where that is missing."""
    place = folder / base / f"seed-{seed}"
    documents = documents_of(datasets_of(place, before=len(NIGHTS) + 1), SIZES[base].measured)
    path = place / arm.name / "scores.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    models = [night["model"] for night in read_nights(place / arm.name / "nights.jsonl")]
    original = str(_artifact(folder / base / "state", "prepare_base"))
    for model in dict.fromkeys(each or original for each in [None, *models]):
        if model not in found:
            found[model] = scores(Path(model), documents)
            write_durably(path, canonical_json(found))
    named = [found[each or original] for each in [None, *models]]
    (place / arm.name / "matrix.json").write_text(json.dumps(named))


def datasets_of(place: Path, before: int) -> dict[str, Path]:
    """Return domain -> dataset of its night, of nights before one, as the first arm prepared it."""
    nights = read_nights(place / FIRST.name / "nights.jsonl")
    return {
        night["brings"]: Path(night["data"])
        for night in nights
        if night["night"] < before and night["brings"] in DOMAINS and night["data"]
    }


def read_nights(path: Path) -> list[dict[str, Any]]:
    """Read the results of an arm; none where it has not begun."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _told(brings: str) -> Verdict:
    return "refused" if brings == "poisoned" else "accepted"


def _bases(state: Path) -> tuple[Path, Path]:
    return _artifact(state, "prepare_base"), _artifact(state, "quantize_base")


def _artifact(state: Path, stage: str) -> Path:
    store = Store(state.resolve())
    return next(
        store.object_path(record.digest) for record in all_records(store) if record.stage == stage
    )

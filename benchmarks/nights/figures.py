"""What nine nights of an arm come to: gains, forgetting, cost, with intervals over documents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.nights.run import read_nights
from benchmarks.nights.scores import OLD
from benchmarks.nights.texts import DOMAINS, NIGHTS
from requant.statistics import Paired, paired_difference

Scores = dict[str, list[float]]
"""Domain, or old text -> nats a byte of each document."""


@dataclass(frozen=True)
class Course:
    """An arm under one seed."""

    nights: list[dict[str, Any]]
    matrix: list[Scores]
    """Scores of what served before the first night, and after each."""


def read_course(folder: Path, base: str, arm: str, seed: int) -> Course:
    """Read what `requant`'s nights of an arm left."""
    place = folder / base / f"seed-{seed}" / arm
    matrix = json.loads((place / "matrix.json").read_text())
    return Course(read_nights(place / "nights.jsonl"), matrix)


def change(courses: Sequence[Course], before: int, after: int, domain: str) -> Paired:
    """Compare what served after two nights (0: before the first) on a domain's documents."""
    return paired_difference(_differences(courses, before, after, domain))


def gains(courses: Sequence[Course]) -> dict[str, Paired]:
    """Return domain -> what is left at the end of what its night and others taught."""
    return {domain: change(courses, 0, len(NIGHTS), domain) for domain in DOMAINS}


def learned(courses: Sequence[Course], domain: str) -> Paired:
    """Return what a domain's own night taught."""
    number = NIGHTS.index(domain) + 1
    return change(courses, number - 1, number, domain)


def forgetting(courses: Sequence[Course]) -> Paired:
    """Return the mean over domains but the last of the best that ever served, minus the last.

    Chaudhry et al. 2018 (arXiv:1801.10112); the best is chosen by its mean, so that a small value
    above zero is what choosing among equals gives.
    """
    lost = []
    for course in courses:
        for domain in DOMAINS[:-1]:
            best = max(course.matrix[1:-1], key=lambda scores: fmean(scores[domain]))
            last = course.matrix[-1][domain]
            lost += [early - late for early, late in zip(best[domain], last, strict=True)]
    return paired_difference(lost)


def old_skill(courses: Sequence[Course]) -> Paired:
    """Return the change of old text from the base to the end."""
    return change(courses, 0, len(NIGHTS), OLD)


def mean_gain(courses: Sequence[Course]) -> Paired:
    """Return the mean over all domains' documents of what is left at the end."""
    return paired_difference(
        [each for domain in DOMAINS for each in _differences(courses, 0, len(NIGHTS), domain)]
    )


def shares(courses: Sequence[Course], bound: Sequence[Course]) -> dict[str, float]:
    """Return domain -> gain at the end, as a share of the upper bound's."""
    most = gains(bound)
    return {d: gain.mean / most[d].mean for d, gain in gains(courses).items()}


def total(courses: Sequence[Course], name: str) -> float:
    """Return the mean over seeds of what the nights took in all: steps, rows or seconds."""
    return fmean(sum(float(night[name]) for night in c.nights) for c in courses)


def verdicts(courses: Sequence[Course], brings: str) -> list[str]:
    """Return what came of a night under each seed."""
    return [str(n["verdict"]) for c in courses for n in c.nights if n["brings"] == brings]


def _differences(courses: Sequence[Course], before: int, after: int, domain: str) -> list[float]:
    """Return later minus earlier score of each document of a domain, of all seeds."""
    return [
        late - early
        for course in courses
        for early, late in zip(
            course.matrix[before][domain], course.matrix[after][domain], strict=True
        )
    ]

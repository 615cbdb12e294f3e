"""docs/nights.md: the nights of every arm in tables and plots, whatever the figures are."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.measurement import ROOT
from benchmarks.nights.arms import SIZES, Arm
from benchmarks.nights.figures import (
    Course,
    forgetting,
    gains,
    learned,
    mean_gain,
    old_skill,
    read_course,
    shares,
    total,
    verdicts,
)
from benchmarks.nights.texts import DOMAINS, NIGHTS
from requant.statistics import Paired

BOUND, NAIVE = "everything", "naive"
Courses = Mapping[str, Sequence[Course]]


def write_report(folder: Path, base: str, arms: Sequence[Arm], seeds: int) -> None:
    """Write docs/nights-BASE.md and its plots.

    Args:
        folder: Of the benchmark.
        base: A name of `SIZES`.
        arms: That were run.
        seeds: 0, 1, ..., this many.
    """
    found = {
        arm.name: [read_course(folder, base, arm.name, seed) for seed in range(seeds)]
        for arm in arms
    }
    plots = ROOT / "docs" / "nights"
    plots.mkdir(exist_ok=True)
    (plots / f"{base}-kept.svg").write_text(_first_skill(found))
    (plots / f"{base}-matrix.svg").write_text(_matrices(found))
    page = ROOT / "docs" / "nights" / f"{base}.md"
    page.write_text("\n".join(_page(found, base, seeds)))
    print(f"written: {page}")


def _page(found: Courses, base: str, seeds: int) -> list[str]:
    sizes = SIZES[base]
    command = "make nights" if base == "tiny" else f"make nights BASE={base}"
    lines = [
        f"# Nine nights on the {base} base",
        "",
        f"Written by `{command}` ([benchmarks/nights](../../benchmarks/nights)); seeds: {seeds}. A "
        f"night brings {sizes.rows} rows: {', '.join(NIGHTS)}. Scores are of the 4-bit model that "
        f"serves after a night, on the first {sizes.measured} rows that each night held out, in "
        "nats a byte of the answer; ± is half of a 95 % interval over documents, paired.",
        "",
        "## What is left at the end",
        "",
        "| arm | gain, all domains | old text | forgetting | steps | rows | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, courses in found.items():
        cost = [total(courses, what) for what in ("steps", "rows", "seconds")]
        lines.append(
            f"| {name} | {_pm(mean_gain(courses))} | {_pm(old_skill(courses))} "
            f"| {_pm(forgetting(courses))} | {cost[0]:.0f} | {cost[1]:.0f} | {cost[2] / 60:.1f} |"
        )
    head = f"| arm | {' | '.join(DOMAINS)} |"
    rule = "| --- |" + " --- |" * len(DOMAINS)
    lines += ["", "## What each night taught, on its own held-out rows", "", head, rule]
    for name, courses in found.items():
        cells = " | ".join(_pm(learned(courses, domain)) for domain in DOMAINS)
        lines.append(f"| {name} | {cells} |")
    lines += ["", "## What of it is there at the end, against the base", "", head, rule]
    for name, courses in found.items():
        cells = " | ".join(_pm(gain) for gain in gains(courses).values())
        lines.append(f"| {name} | {cells} |")
    lines += ["", "## What the gate did", ""]
    lines += [f"| arm | {' | '.join(NIGHTS)} |", "| --- |" + " --- |" * len(NIGHTS)]
    for name, courses in found.items():
        cells = " | ".join(_counted(verdicts(courses, brings)) for brings in NIGHTS)
        lines.append(f"| {name} | {cells} |")
    if BOUND in found and NAIVE in found:
        lines += ["", "## The aim", "", *_aims(found)]
    lines += [
        "",
        "## The matrix",
        "",
        "Gain against the base of what served after each night (rows) on what each night held out "
        "(columns), mean over seeds.",
        "",
        f"![matrix]({base}-matrix.svg)",
        "",
        f"What is left of the first night's skill after each later one ({DOMAINS[0]}):",
        "",
        f"![first night's skill]({base}-kept.svg)",
        "",
    ]
    return lines


def _aims(found: Courses) -> list[str]:
    """Hold every arm of requant's against what was aimed at."""
    bound, naive = found[BOUND], found[NAIVE]
    lines = [
        "Of the upper bound's gain: the least of the domains' shares, 95 % aimed at, and the mean "
        "gain's; of its steps: 35 % at most; of the naive arm's forgetting: a fifth at most; nats "
        "of old text lost for each nat of new: 0.05 at most.",
        "",
        "| arm | least share | share of the mean gain | steps | forgetting | old for new |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, courses in found.items():
        if name in (BOUND, NAIVE):
            continue
        gain = mean_gain(courses).mean
        lines.append(
            f"| {name} | {min(shares(courses, bound).values()):.0%} "
            f"| {gain / mean_gain(bound).mean:.0%} "
            f"| {total(courses, 'steps') / total(bound, 'steps'):.0%} "
            f"| {forgetting(courses).mean / forgetting(naive).mean:.2f} "
            f"| {_old_for_new(courses)} |"
        )
    return lines


def _old_for_new(courses: Sequence[Course]) -> str:
    gain = mean_gain(courses).mean
    return f"{max(0.0, -old_skill(courses).mean) / gain:.3f}" if gain > 0 else "nothing new"


def _pm(found: Paired) -> str:
    assert found.high is not None
    return f"{found.mean:+.3f} ± {found.high - found.mean:.3f}"


def _counted(found: Sequence[str]) -> str:
    return ", ".join(
        f"{verdict}{f' {count}x' if count > 1 else ''}" for verdict, count in Counter(found).items()
    )


def _first_skill(found: Courses) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for name, courses in found.items():
        axes.plot(range(len(NIGHTS) + 1), _gains_by_night(courses, DOMAINS[0]), label=name)
    axes.set_xticks(range(len(NIGHTS) + 1), ["base", *NIGHTS], rotation=30)
    axes.set_ylabel("nats a byte")
    axes.legend(fontsize=7)
    return _svg(figure)


def _matrices(found: Courses) -> str:
    from matplotlib.figure import Figure

    across = 3
    down = -(-len(found) // across)
    figure = Figure(figsize=(11, 2.7 * down))
    plots = figure.subplots(down, across, squeeze=False)
    values = {
        name: [_gains_by_night(courses, domain)[1:] for domain in DOMAINS]
        for name, courses in found.items()
    }
    most = max(abs(value) for each in values.values() for row in each for value in row)
    for index, (name, rows) in enumerate(values.items()):
        axes = plots[index // across][index % across]
        turned = [list(column) for column in zip(*rows, strict=True)]
        shown = axes.imshow(turned, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(DOMAINS)), DOMAINS, fontsize=6)
        axes.set_yticks(range(len(NIGHTS)), NIGHTS, fontsize=6)
    for index in range(len(values), down * across):
        plots[index // across][index % across].axis("off")
    figure.colorbar(shown, ax=plots.ravel().tolist(), label="nats a byte against the base")
    return _svg(figure)


def _gains_by_night(courses: Sequence[Course], domain: str) -> list[float]:
    """Return the mean gain against the base before the first night, and after each."""
    return [
        fmean(
            fmean(course.matrix[night][domain]) - fmean(course.matrix[0][domain])
            for course in courses
        )
        for night in range(len(NIGHTS) + 1)
    ]


def _svg(figure: object) -> str:
    import matplotlib

    # The same figures must give the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "requant"
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")  # type: ignore[attr-defined]
    return out.getvalue()

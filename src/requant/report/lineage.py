"""Where an artifact came from: a walk through the store's records, as lines or as a page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from requant.errors import ArtifactError
from requant.report.headline import artifact_name, headline
from requant.report.page import render
from requant.store import StageRecord
from requant.wording import duration

SHORT = 12
"""Hex digits of a digest, as people write it."""


@dataclass(frozen=True)
class Branch:
    """An artifact and, as branches, what it was made from."""

    role: str
    """What the artifact was to the stage that took it; empty at the top."""
    digest: str
    record: StageRecord | None
    """None for content outside the store: a corpus, a file, a hub commit."""
    repeated: bool
    """Whether the branches of this box are already shown further up."""
    branches: tuple["Branch", ...]


def parents(record: StageRecord) -> dict[str, str]:
    """Return role -> digest of everything the stage was given, in role order."""
    inputs: Mapping[str, str] = record.key_fields.get("inputs", {})
    return dict(sorted(inputs.items()))


def causes_first(digest: str, parents_of: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """Order everything above a digest so that each one follows what it was made from.

    Args:
        digest: Where to begin; it comes last.
        parents_of: Direct parents. A stage may give back its input unchanged, so cycles are met.
    """
    order: dict[str, None] = {}
    entered: set[str] = set()

    def visit(item: str) -> None:
        if item not in entered:
            entered.add(item)
            for parent in parents_of(item):
                visit(parent)
            order[item] = None

    visit(digest)
    return tuple(order)


def lineage_tree(records: Iterable[StageRecord], digest: str) -> Branch:
    """Return what an artifact was made from as a tree; each artifact is unfolded once.

    Raises:
        ArtifactError: If no record produced it.
    """
    known = _by_digest(records, digest)
    unfolded: set[str] = set()

    def branch(role: str, item: str) -> Branch:
        record = known.get(item)
        above = parents(record) if record else {}
        repeated = item in unfolded and bool(above)
        unfolded.add(item)
        branches = () if repeated else tuple(branch(name, up) for name, up in above.items())
        return Branch(role, item, record, repeated, branches)

    return branch("", digest)


def branch_text(branch: Branch) -> str:
    """Describe one branch on one line, without its branches."""
    role = f"{branch.role}: " if branch.role else ""
    if branch.record is None:
        return f"{role}{branch.digest[:SHORT]}  outside the store"
    if branch.repeated:
        return f"{role}{branch.record.stage}  {branch.digest[:SHORT]}  (see above)"
    figures = headline(branch.record)
    return "  ".join(
        part
        for part in (
            f"{role}{branch.record.stage}",
            branch.digest[:SHORT],
            duration(branch.record.seconds),
            figures,
        )
        if part
    )


def tree_lines(branch: Branch) -> list[str]:
    """Draw a tree as plain lines, one per artifact."""
    return [branch_text(branch), *_drawn(branch.branches, "")]


def lineage_html(
    records: Sequence[StageRecord],
    links: Mapping[str, str] | None = None,
    cached: Iterable[str] = (),
    title: str = "",
) -> str:
    """Draw a night as one self-contained page that needs no network and no script.

    Args:
        records: Of the night, causes first.
        links: Digest to the address of its page.
        cached: Stages that were not executed.
        title: Of the night.
    """
    return render(
        "lineage.html.j2",
        title=title or "lineage",
        boxes=lineage_boxes(records, links, cached),
    )


def lineage_boxes(
    records: Sequence[StageRecord],
    links: Mapping[str, str] | None = None,
    cached: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return what a page draws of a night's artifacts, one box each; see `lineage_html`."""
    hits = frozenset(cached)
    owners = _makers(records)
    # Data first: then most boxes follow what they were made from, and the arrow between is true.
    ordered = sorted(records, key=lambda record: record.kind != "dataset")
    boxes = [_box(record, owners, links or {}, record.stage in hits) for record in ordered]
    for above, box in pairwise(boxes):
        box["arrow"] = above["digest"] in {item["anchor"] for item in box["made_from"]}
    return boxes


def _box(
    record: StageRecord,
    owners: Mapping[str, StageRecord],
    links: Mapping[str, str],
    cached: bool,
) -> dict[str, Any]:
    made_from = [
        {
            "role": role,
            "name": artifact_name(owners[digest].stage)
            if digest in owners
            else "outside the store",
            "digest": digest[:SHORT],
            "anchor": digest if digest in owners else None,
        }
        for role, digest in parents(record).items()
    ]
    return {
        "stage": record.stage,
        "name": artifact_name(record.stage),
        "kind": record.kind,
        "digest": record.digest,
        "short": record.digest[:SHORT],
        "seconds": duration(record.seconds),
        "headline": headline(record),
        "cached": cached,
        "url": links.get(record.digest),
        "made_from": made_from,
        "arrow": False,
    }


def _makers(records: Iterable[StageRecord]) -> dict[str, StageRecord]:
    """Return digest to what made it; a stage that gave back its input unchanged did not."""

    def unchanged(record: StageRecord) -> bool:
        return record.digest in parents(record).values()

    return {record.digest: record for record in sorted(records, key=unchanged, reverse=True)}


def _by_digest(records: Iterable[StageRecord], digest: str) -> dict[str, StageRecord]:
    known = _makers(records)
    if digest not in known:
        raise ArtifactError(
            f"digest {digest[:SHORT]}: no record says what made it; "
            "`requant status CONFIG` prints the digests that have one"
        )
    return known


def _drawn(branches: tuple[Branch, ...], indent: str) -> list[str]:
    lines: list[str] = []
    for position, branch in enumerate(branches):
        last = position == len(branches) - 1
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{branch_text(branch)}")
        lines += _drawn(branch.branches, indent + ("   " if last else "│  "))
    return lines

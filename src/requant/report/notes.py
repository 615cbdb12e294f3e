"""The Markdown that stands on MLflow's pages, so that a newcomer reads where a model came from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from requant.canonical import flattened
from requant.names import markdown, markdown_block
from requant.report.headline import artifact_name, headline
from requant.store import StageRecord
from requant.wording import duration

LED_TO = "\n\n**Led to:**\n\n"
MAX_LED_TO = 20
MAX_CRUMBS = 24
"""How many of the latest causes are listed: the chain of a line that never ends has no end."""


@dataclass(frozen=True)
class Crumb:
    """One artifact of a breadcrumb."""

    stage: str
    digest: str
    url: str | None
    """Page of the artifact; None where there is no page, or for the page one is on."""

    def __str__(self) -> str:
        text = f"{artifact_name(self.stage)} `{self.digest[:8]}`"
        return f"[{text}]({self.url})" if self.url else f"**{text}**"


@dataclass(frozen=True)
class NightLine:
    """One stage in the description of a night."""

    stage: str
    url: str
    """Page of its run."""
    state: str
    digest: str
    headline: str


def breadcrumb(crumbs: Sequence[Crumb]) -> str:
    """Write a chain of artifacts as one Markdown line of links, the first cause first."""
    cut = "… &rsaquo; " if len(crumbs) > MAX_CRUMBS else ""
    return cut + " &rsaquo; ".join(str(crumb) for crumb in crumbs[-MAX_CRUMBS:])


def model_note(record: StageRecord, crumbs: Sequence[Crumb], uri: str) -> str:
    """Describe a model or adapter: the path to it, its figures, where its files are.

    Args:
        record: Of the stage that made it.
        crumbs: Models and adapters it was made from, causes first, itself last.
        uri: Address of its folder.
    """
    figures = headline(record)
    made = f"Made by `{record.stage}` in {duration(record.seconds)}"
    return "\n\n".join(
        [
            breadcrumb(crumbs),
            f"{made}: {figures}." if figures else f"{made}.",
            f"Files: `{uri}`. Digest and inputs are under Parameters.",
        ]
    )


def with_led_to(note: str, crumb: Crumb) -> str:
    """Add to a model's description that something was made from it; the latest 20 are kept."""
    head, _, tail = note.partition(LED_TO)
    line = f"- {crumb}"
    lines = [old for old in tail.splitlines() if old and old != line]
    return head + LED_TO + "\n".join([*lines, line][-MAX_LED_TO:])


def stage_note(
    record: StageRecord, inputs: Mapping[str, Crumb], output: Crumb, executed_in: str | None
) -> str:
    """Describe a stage's run: what it took, what it gave.

    Args:
        record: What the stage left behind.
        inputs: Role to artifact.
        output: The artifact.
        executed_in: For a cached stage the page of the run that did the work, empty where there is
            none; None where this run did it.
    """
    took = ", ".join(
        str(crumb) if artifact_name(crumb.stage) == role else f"{role}: {crumb}"
        for role, crumb in inputs.items()
    )
    figures = headline(record)
    lines = [f"{took} → {output}" if took else f"→ {output}", figures]
    if executed_in is not None:
        where = f" by [the run that has its curves]({executed_in})" if executed_in else ""
        lines.append(f"**Cached**: the work was already done{where}; every byte was checked.")
    return "\n\n".join(line for line in lines if line)


def night_note(
    lines: Sequence[NightLine],
    status: str,
    crumbs: Sequence[Crumb] = (),
    pages: Mapping[str, str] | None = None,
    failure: str = "",
    nights: str = "",
    verdict: str = "",
) -> str:
    """Describe a night: the path to its model, its stages, its pages.

    Args:
        lines: Stages in the order they began.
        status: How it ended.
        crumbs: Models and adapters of the night.
        pages: Name to address of its own pages.
        failure: Cause and way out; comes before everything else.
        nights: Address of the list of all nights.
        verdict: The gate's, in Markdown.
    """
    items = [
        f"1. [{line.stage}]({line.url}) {line.state}"
        + (f", `{line.digest[:12]}`" if line.digest else "")
        + (f": {markdown(line.headline)}" if line.headline else "")
        for line in lines
    ]
    links = " and ".join(f"[{name}]({url})" for name, url in (pages or {}).items())
    intro = f"One night of incremental training, **{status.lower()}**."
    compare = f" Compare [all nights]({nights})." if nights else ""
    # The page cuts a long description after two lines and lays a veil over the links below them:
    # what leads on stands on those two, joined by a Markdown line break.
    return "\n".join(
        [
            *([markdown_block(failure), ""] if failure else []),
            *([breadcrumb(crumbs) + "  "] if crumbs else []),
            (f"{intro} Open its {links}." if links else intro) + compare,
            "",
            *([verdict, ""] if verdict else []),
            *(items or ["No stage was reached."]),
        ]
    )


def flat(fields: Mapping[str, Any]) -> dict[str, str]:
    """Turn nested sections into dotted names; a value that is no text is spelled as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in flattened(fields).items()
        if not isinstance(value, Mapping)
    }

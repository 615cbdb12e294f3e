"""What a person reads of a night in the state folder: summary, report and lineage page."""

import html
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from prefect import get_run_logger
from pydantic import BaseModel, ConfigDict

from requant.config import SHIPPING, STAGE_NAMES, Config
from requant.config.task_names import HELDOUT_PERPLEXITY
from requant.errors import TransientError
from requant.evaluation.artifact import CHAIN
from requant.evaluation.survival import Survival, in_words
from requant.report.headline import headline
from requant.report.lineage import lineage_html
from requant.report.night import StageRow, StageState, night_report
from requant.report.survival import survival_table
from requant.report.verdict import verdict_markdown
from requant.store import StageRecord, Store
from requant.store.durable import write_durably
from tasks import tracking
from tasks.nightly.findings import findings_of, ledger_of
from tasks.promote import Promotion
from tasks.stage_task import Night
from tasks.tracking.nights import BASE_PERPLEXITY, NIGHT_PERPLEXITY, SIZE

SUMMARY_NAME = "summary.json"


class SummaryRow(BaseModel):
    """One line of the table a person reads."""

    model_config = ConfigDict(frozen=True)

    stage: str
    state: StageState
    seconds: float | None
    """Time of the execution that made the artifact, in this night or an earlier one."""
    digest: str | None
    headline: str
    error: str = ""
    """Why it failed and the way out."""


class NightSummary(BaseModel):
    """What came of a night, also of one that failed."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[SummaryRow, ...]
    report: Path
    mlflow_uri: str
    mlflow_page: str
    """Address of the night's run; to be put after a server's address where none is configured."""
    mlflow_nights: str = ""
    """Address of the list of all nights, likewise."""
    to_deploy: int | None
    """Version that became champion and is not deployed yet."""
    line: str = ""
    """Name of the model line."""
    title: str = ""
    ended: float = 0.0
    """Seconds since the epoch."""
    outcome: str = ""
    """What came of it, in two words."""
    reason: str = ""
    """Why it failed or was refused, on one line."""
    figures: dict[str, float] = {}
    """What nights are compared by."""
    survival: tuple[tuple[str, ...], ...] = ()
    """Which step cost what: a heading and a row a step."""
    survival_words: tuple[str, ...] = ()
    """A sentence a task."""


def write_pages(
    night: Night,
    reached: list[StageRow],
    promotion: Promotion | None,
    title: str,
    notes: Sequence[str] = (),
) -> tuple[NightSummary, str, str]:
    """Write summary, report and lineage page into the state folder.

    Returns:
        The summary, the lineage page and the report, as HTML.
    """
    records = [row.record for row in reached if row.record]
    names = {row.stage for row in reached}
    # Of a promotion that failed by an error there is a row like a stage's.
    promoted = () if "promote" in names else (_promotion_row(promotion, promotes(night.config)),)
    links = cache(lambda: _links(night, records))
    found = cache(lambda: findings_of(night.store, records, promotion))
    missing = [StageRow(stage, "not reached") for stage in STAGE_NAMES if stage not in names]
    rows = [*reached, *missing, *promoted]

    def draw_lineage() -> str:
        cached = [row.stage for row in rows if row.state == "cached"]
        return lineage_html(records, links=links(), cached=cached, title=title)

    def draw_report() -> str:
        return night_report(title, rows, found(), notes, links())

    failure = "\n\n".join(f"{row.stage} {row.state}: {row.error}" for row in rows if row.error)
    lineage = _drawn("lineage", draw_lineage, failure)
    report = _drawn("report", draw_report, failure)
    ledger = ledger_of(found)
    path = night.store.report_path(night.parent.flow_run_id)
    summary = NightSummary(
        rows=tuple(_summary_row(row) for row in rows),
        report=path,
        mlflow_uri=night.parent.uri,
        mlflow_page=tracking.run_page(night.parent),
        mlflow_nights=tracking.nights_page(night.parent),
        to_deploy=promotion.version.version if promotion and promotion.to_deploy else None,
        line=night.config.name,
        title=title,
        ended=time.time(),
        outcome=night_verdict(rows, promotion),
        reason=_reason(rows),
        figures=night_figures(records) | _compared(ledger),
        survival=tuple(map(tuple, survival_table(ledger))),
        survival_words=tuple(in_words(ledger)),
    )
    write_durably(path, report.encode())
    write_durably(path.with_name("lineage.html"), lineage.encode())
    write_durably(path.with_name(SUMMARY_NAME), summary.model_dump_json(indent=2).encode())
    return summary, lineage, report


def _drawn(page: str, draw: Callable[[], str], failure: str) -> str:
    """Draw a page; one that cannot be drawn says so and fails nothing: the night is what it was.

    Why the night failed stands on it all the same.
    """
    try:
        return draw()
    except Exception as error:
        get_run_logger().exception(f"the {page} could not be drawn")
        text = html.escape(f"{type(error).__name__}: {error}")
        return (
            f"<!doctype html><title>{page}</title><pre>{html.escape(failure)}</pre>"
            f"<p>This page could not be drawn: {text}</p>"
        )


def promotes(config: Config) -> bool:
    """Tell whether a night that ends well registers a model."""
    return config.promote.enabled and config.runs(config.ships) and config.evaluate.enabled


def read_summary(config: Config, run_id: object) -> NightSummary | None:
    """Return what a flow run left, also when it failed; None where it never opened its night."""
    report = Store(config.state.resolve()).report_path(str(run_id))
    path = report.with_name(SUMMARY_NAME)
    return NightSummary.model_validate_json(path.read_bytes()) if path.exists() else None


def night_figures(records: list[StageRecord]) -> dict[str, float]:
    """Return what a person compares nights by: the columns of MLflow's list of nights.

    Returns:
        `BASE_PERPLEXITY` and `NIGHT_PERPLEXITY`, of the bytes of the held-out text for the base and
        the last model of the night, and `SIZE`, of the 4-bit model against the 16-bit one.
    """
    metrics = {record.stage: record.metrics for record in records}
    evaluated = metrics.get("evaluate", {})
    measured = [
        evaluated[name]
        for model in CHAIN
        if (name := f"{model}/{HELDOUT_PERPLEXITY}/byte_perplexity") in evaluated
    ]
    figures = {}
    if len(measured) > 1:
        figures = {BASE_PERPLEXITY: measured[0], NIGHT_PERPLEXITY: measured[-1]}
    sizes = [metrics.get(stage, {}).get("size_ratio") for stage in SHIPPING]
    size = next((value for value in sizes if value is not None), None)
    return figures if size is None else figures | {SIZE: size}


def _compared(ledger: Survival) -> dict[str, float]:
    """Return what the night won and kept, by names for people."""
    kept = {task: ledger.survived(task) for task in ledger.tasks}
    return {
        **{f"{task}: gain kept": share for task, share in kept.items() if share is not None},
        **{f"{step.task} {step.name}": step.change.mean for step in ledger.judged},
    }


def _reason(rows: Sequence[StageRow]) -> str:
    """Say on one line why a night ended as it did; empty where it went well."""
    lines = next((row.error.splitlines() for row in rows if row.error), [])
    # A refusal is a heading and its reasons.
    return " ".join(line.removeprefix("- ") for line in lines[:2])


def night_verdict(rows: list[StageRow], promotion: Promotion | None) -> str:
    """Say in two words what came of a night."""
    ended = [row for row in rows if row.error]
    if ended:
        # The column is narrow: the word that matters comes first.
        return f"{ended[0].state}: {ended[0].stage}"
    return promotion.outcome if promotion else "not registered"


def judged(promotion: Promotion | None) -> str:
    """Write the gate's verdict with its reasons as Markdown; nothing where it gave none."""
    decision = promotion.decision if promotion else None
    return verdict_markdown(decision) if decision else ""


def _links(night: Night, records: list[StageRecord]) -> dict[str, str]:
    try:
        return tracking.model_links(night.parent, [item.digest for item in records])
    except TransientError as error:
        # The pages must be written, with links or without.
        get_run_logger().warning("the lineage page has no links to MLflow's models: %s", error)
        return {}


def _summary_row(row: StageRow) -> SummaryRow:
    record = row.record
    return SummaryRow(
        stage=row.stage,
        state=row.state,
        seconds=record.seconds if record else None,
        digest=record.digest if record else row.digest or None,
        headline=headline(record) if record else row.headline,
        error=row.error,
    )


def _promotion_row(promotion: Promotion | None, enabled: bool) -> StageRow:
    if promotion is None:
        return StageRow("promote", "not reached" if enabled else "off")
    given = promotion.decision if promotion.outcome == "challenger" else None
    gate = f"; the gate: {given.verdict}" if given else ""
    return StageRow(
        stage="promote",
        state="refused" if promotion.outcome == "refused" else "done",
        error=promotion.reason,
        digest=promotion.version.digest,
        # The error says the rest.
        headline=promotion.reason.partition("\n")[0]
        or f"version {promotion.version.version}: {promotion.outcome}{gate}",
    )

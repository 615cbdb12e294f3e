"""What a person reads of a night on its flow run's page in Prefect."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from requant.evaluation.artifact import Scores, measured
from requant.names import artifact_key, markdown, markdown_block
from requant.report.survival import survival_markdown
from requant.store import StageRecord
from tasks.nightly.findings import findings_of
from tasks.nightly.pages import NightSummary
from tasks.stage_task import Night


def publish_artifacts(
    night: Night, summary: NightSummary, records: list[StageRecord], verdict: str
) -> None:
    """Show verdict, stages, ledger and scores on the flow run's own page in Prefect."""
    key = artifact_key(night.config.name)
    create_markdown_artifact(
        _stage_table(summary, verdict),
        key=f"night-{key}",
        description=f"Verdict and stages of {night.config.name}",
    )
    if told := survival_markdown(summary.survival, summary.survival_words):
        create_markdown_artifact(
            told,
            key=f"survival-{key}",
            description=f"Which step of {night.config.name} cost what",
        )
    scores = findings_of(night.store, records).scores
    if scores:
        create_table_artifact(
            _score_rows(scores),
            key=f"scores-{key}",
            description="Scores of every model of the night, with lm-eval's standard error",
        )


def _stage_table(summary: NightSummary, verdict: str) -> str:
    page = summary.mlflow_page
    link = f"[the night in MLflow]({page})" if page.startswith("http") else f"MLflow: `{page}`"
    failures = [
        f"**{row.stage} {row.state}**\n\n{markdown_block(row.error)}\n"
        for row in summary.rows
        if row.error
    ]
    given = [verdict, ""] if verdict else []
    lines = [
        *failures,
        *given,
        "| stage | state | seconds | digest | headline |",
        "|---|---|--:|---|---|",
    ]
    for row in summary.rows:
        seconds = f"{row.seconds:.1f}" if row.seconds is not None else ""
        digest = f"`{row.digest[:12]}`" if row.digest else ""
        lines.append(
            f"| {row.stage} | {row.state} | {seconds} | {digest} | {markdown(row.headline)} |"
        )
    return "\n".join([*lines, "", link, "", f"Report: `{summary.report}`"])


def _score_rows(scores: Scores) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "metric": metric,
            **{
                model: _with_error(tasks[task][metric])
                for model, tasks in scores.items()
                if metric in tasks.get(task, {})
            },
        }
        for task, metric in measured(scores)
    ]


def _with_error(estimate: Mapping[str, float | bool | None]) -> str:
    error = estimate["stderr"]
    return f"{estimate['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")

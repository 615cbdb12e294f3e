"""The nights of a line that have ended, as their summaries have them."""

from pathlib import Path

from pydantic import ValidationError

from requant.config import Config
from requant.errors import RequantError
from requant.evaluation.matrix import line_rows
from requant.outside.json_text import read_json
from requant.report.nights import NightEntry, nights_report
from requant.store import Store
from requant.store.durable import write_durably
from requant.wording import few_lines, printable
from tasks.nightly.pages import SUMMARY_NAME, NightSummary


def write_nights(config: Config, count: int) -> Path:
    """Write the page of a line's last nights beside their reports; return its path.

    Args:
        config: Names state folder and line.
        count: Nights at most, the latest.
    """
    store = Store(config.state.resolve())
    found, unread = [], []
    for path in sorted(store.reports.glob(f"*/{SUMMARY_NAME}")):
        try:
            summary = NightSummary.model_validate(read_json(path))
        except (RequantError, ValidationError, OSError) as error:
            cause = str(error).partition("\n")[0]
            unread.append(f"{printable(path)}: is no summary of a night: {cause}; it is left out")
            continue
        if summary.line == config.name:
            found.append(_entry(summary, path))
    nights = sorted(found, key=lambda night: night.ended)[-count:]
    page = store.nights_path(config.name)
    try:
        matrix = line_rows(store, config.name)
    except (RequantError, OSError) as error:
        matrix = []
        unread.append(f"what each generation kept cannot be read: {printable(error)}")
    text = nights_report(config.name, nights, few_lines(unread, "files"), matrix)
    write_durably(page, text.encode())
    return page


def _entry(summary: NightSummary, path: Path) -> NightEntry:
    return NightEntry(
        title=summary.title,
        ended=summary.ended,
        outcome=summary.outcome,
        reason=summary.reason,
        page=f"{path.parent.name}/{summary.report.name}",
        figures=summary.figures,
    )

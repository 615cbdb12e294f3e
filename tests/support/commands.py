"""The command line as a person gives it, in this process."""

import re
from pathlib import Path

from typer.testing import CliRunner

from requant.cli import app
from requant.config import STAGE_NAMES


def requant(*words: object, fails: int = 0) -> str:
    """Run a command; return all it printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == fails, result.output
    return result.output


def states(output: str) -> dict[str, str]:
    """Read the table of stages a command printed."""
    rows = re.findall(r"^\s*(\w+)\s+(done|cached|off|failed|not reached|run|waits)\b", output, re.M)
    return {stage: state for stage, state in rows if stage in STAGE_NAMES}


def newest_report(folder: Path) -> str:
    pages = (folder / "state/reports").glob("*/report.html")
    return max(pages, key=lambda path: path.stat().st_mtime).read_text()

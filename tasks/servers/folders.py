"""Folders and databases of nights and servers, for their owner only; said where they were not."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from prefect import get_run_logger
from prefect.settings import get_current_settings

from requant.store.privacy import close, make_private, open_to_others
from tasks.tracking.connection import SQLITE

STATE = "state"


def keep_private(state: Path, tracking_uri: str | None = None) -> list[str]:
    """Close the state folder and Prefect's home to everybody but their owner.

    Args:
        state: Folder, with links resolved; made where it is missing.
        tracking_uri: Of the configuration. A database that a person put elsewhere is only looked
            at.

    Returns:
        What a person should know: what was open, and what still is.

    Raises:
        ConfigError: If the state folder cannot be made.
    """
    said = make_private(state, STATE)
    home = get_current_settings().home.resolve()
    if home.is_dir() and not home.is_relative_to(state):
        said += make_private(home, "PREFECT_HOME")
    if tracking_uri and tracking_uri.startswith(SQLITE):
        database = Path(tracking_uri.removeprefix(SQLITE)).resolve()
        if reason := open_to_others(database):
            said.append(f"tracking.uri: {reason}; close it: chmod 600 {shlex.quote(str(database))}")
    return said


def close_again(state: Path) -> list[str]:
    """Close what libraries have made in a state folder with modes of their own; say what cannot."""
    return close(state, STATE)


def warn(said: Iterable[str]) -> None:
    """Log what a person should know, in the log of the flow run in progress."""
    for text in said:
        get_run_logger().warning(text)

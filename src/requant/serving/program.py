"""Deploy by a program of the user's, which finds the model in its environment."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from requant.config.operations import CommandAction, no_program
from requant.credentials import SECRET_VARIABLES
from requant.errors import ContractError, TransientError
from requant.machine.programs import Ended, run_program
from requant.redaction import Redact
from requant.serving.release import Release
from requant.wording import printable

TAIL_CHARACTERS = 2000


def run_command(
    action: CommandAction,
    release: Release,
    folder: Path,
    secrets: Mapping[str, str],
    redact: Redact,
) -> str:
    """Run a command that finds the model in its environment; no shell reads anything.

    Args:
        action: What to run.
        release: The model.
        folder: Its files.
        secrets: By the environment variable that gets each.
        redact: Hides them, before the output is cut.

    Returns:
        The end of its output.

    Raises:
        ContractError: If there is no such program.
        TransientError: If it fails or takes longer than `action.seconds`, after all it started has
            ended.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
        **secrets,
        "REQUANT_MODEL": release.model,
        "REQUANT_VERSION": str(release.version),
        "REQUANT_DIGEST": release.digest,
        "REQUANT_FOLDER": str(folder),
    }
    if shutil.which(action.argv[0], path=environment.get("PATH")) is None:
        raise ContractError(f"deploy.action.argv: {no_program(action.argv)}")
    program = printable(redact(action.argv[0]))
    ended = run_program(action.argv, environment, action.seconds)
    said = _end_of(ended, redact)
    if ended.status is None:
        raise TransientError(
            f"deploy.action.argv: {program!r} took longer than {action.seconds:g} s and was ended "
            f"with all it had started:\n{said}"
        )
    if ended.status:
        raise TransientError(
            f"deploy.action.argv: {program!r} ended with status {ended.status}:\n{said}"
        )
    return f"{program} ended well: {said}"


def _end_of(ended: Ended, redact: Redact) -> str:
    """Write the last characters a program printed, and count those before."""
    text = redact(ended.output.decode(errors="replace"), cut_before=bool(ended.dropped))
    lines = "\n".join(printable(line) for line in text.strip().splitlines())
    before = max(0, len(lines) - TAIL_CHARACTERS)
    left_out = before + ended.dropped
    if not left_out:
        return lines or "it said nothing"
    return f"... ({left_out} characters before this are left out)\n{lines[before:]}"

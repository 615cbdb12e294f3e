"""Regular expressions that somebody else wrote: matched where they can be stopped.

Nothing stops a pattern such as (a+)+b in the middle of a name but the end of its process.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from requant.errors import ContractError

SECONDS = 2
"""The processor time that all patterns of a file may take together."""
WALL_SECONDS = 120.0
MAX_CHARACTERS = 4096
MATCHER = Path(__file__).with_name("matcher.py")


def check_patterns(patterns: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse patterns that do not compile, or take too long with one of the names.

    Those that pass may be matched against the same names in this process: it is the same work.

    Args:
        patterns: What the error calls it (file, field and value) -> regular expression, as `re`
            is given it.
        names: What it will be matched against.

    Raises:
        ContractError: With the name of the pattern that fails.
    """
    for name, pattern in patterns.items():
        if len(pattern) > MAX_CHARACTERS:
            raise ContractError(
                f"{name} is a pattern of {len(pattern)} characters; at most {MAX_CHARACTERS} are "
                "matched: list the modules' names instead"
            )
    if not patterns:
        return
    asked = json.dumps(
        {"patterns": list(patterns.values()), "names": list(names), "seconds": SECONDS}
    )
    try:
        done = subprocess.run(
            # Nothing but the standard library, so that it begins in hundredths of a second.
            [sys.executable, "-I", "-S", str(MATCHER)],
            input=asked.encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
        told, late = done.stdout, done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    except subprocess.TimeoutExpired as error:
        told, late = error.stdout or b"", True
    *_, last = told.decode().splitlines() or [""]
    number, _, reason = last.partition(" ")
    if last == "done":
        return
    name = list(patterns)[int(number)] if number else "the patterns"
    if reason:
        raise ContractError(f"{name} is no pattern: {reason}; correct it")
    why = f"takes longer than {SECONDS} s" if late else "cannot be matched"
    raise ContractError(
        f"{name} {why} on the names of the model's modules; write it without repeats inside of "
        "repeats, or list the names"
    )

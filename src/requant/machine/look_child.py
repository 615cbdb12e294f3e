"""The process of a look: `python -m requant.machine.look_child FOLDER`; see `looking`."""

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

from requant.machine.looking import LABEL_CHARACTERS, Look, Watch, process_memory, told_of
from requant.machine.processes import die_with
from requant.wording import printable

WAITING = 60
"""Seconds of the clock that a second of processor time may take on a busy machine."""


def watch_by_kernel(folder: Path) -> Watch:
    """Return a watch that has this process killed, also in the middle of a library's C code."""
    written = os.open(folder / "label", os.O_RDWR | os.O_CREAT, 0o600)

    def watch(label: str, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = f"{printable(label)[:LABEL_CHARACTERS]}\n{seconds:.0f}".encode()
        os.pwrite(written, text, 0)
        os.ftruncate(written, len(text))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        # What waits for a pipe uses no processor.
        signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)

    return watch


def main(folder: Path) -> None:
    """Call what is asked for, bounded, and write down what came of it."""
    asked = Look(**json.loads((folder / "asked.json").read_bytes()))
    module, _, name = asked.target.partition(":")
    # Its libraries are ours: they are neither bounded nor timed.
    function = getattr(importlib.import_module(module), name)
    bound = process_memory() + asked.memory
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    try:
        told = {"returned": function(asked.argument, watch_by_kernel(folder))}
    # Libraries in Rust panic with what is no Exception.
    except BaseException as error:
        told = told_of(error)
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    die_with(os.getppid())
    main(Path(sys.argv[1]))

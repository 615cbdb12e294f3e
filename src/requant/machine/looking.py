"""A look at content from outside in a process of its own, which can be stopped and is bounded.

A chat template, a tokenizer's pattern and a compressed file are programs: they may never end, or
fill the memory. What has passed here does so in no later stage, because that is the same work.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import executable
from typing import Any

from requant.credentials import SERVER_VARIABLES
from requant.errors import ConfigError, named_error
from requant.machine.processes import end, environment, spawn
from requant.wording import bounded, data_size

LABEL_CHARACTERS = 1000
MEMORY = 1 << 30
"""Bytes a look may take beyond its libraries, where the files themselves ask for no more."""

Watch = Callable[[str, float], None]
"""Is told before each piece of work what it is (file or field, and what is done with it), and how
many seconds of processor time it may take. Not of the clock: on a busy machine everything is slow.
"""


def unwatched(label: str, seconds: float) -> None:
    """A `Watch` that watches nothing, for work nobody stops."""


@dataclass(frozen=True)
class Look:
    """What is called in the process, and with what."""

    target: str
    """module:function of (argument, watch), which returns JSON."""
    argument: Any
    """As JSON can hold it."""
    memory: int = MEMORY
    """Bytes it may take beyond its libraries."""


def look(asked: Look) -> Any:
    """Call a function in a process of its own; return what it returns.

    Raises:
        RequantError: What the function raised, of the same class and text.
        ConfigError: If it was stopped or died, naming the piece of work it was at.
    """
    with tempfile.TemporaryDirectory(prefix="requant-look-") as name:
        folder = Path(name)
        (folder / "asked.json").write_text(json.dumps(asdict(asked)))
        process = spawn(
            [executable, "-m", "requant.machine.look_child", str(folder)],
            output=subprocess.DEVNULL,
            # It is to see nothing of a GPU, which somebody else may fill, and has no use for the
            # passwords of servers.
            env={**environment(SERVER_VARIABLES), "CUDA_VISIBLE_DEVICES": ""},
        )
        try:
            process.wait()
        finally:
            status = end(process)
        return _outcome(folder, status, asked.memory)


def _outcome(folder: Path, status: int, memory: int) -> Any:
    told = folder / "told.json"
    found = json.loads(told.read_bytes()) if status == 0 and told.exists() else None
    if found is not None and "returned" in found:
        return found["returned"]
    label, _, seconds = _label(folder).partition("\n")
    if found is not None and found["error"] != "MemoryError":
        known = named_error(found["error"])
        if known is not None:
            raise known(found["text"])
        raise ConfigError(f"{label}: failed with {found['error']}: {found['text']}; mend the file")
    raise ConfigError(f"{label}: {_why_stopped(status, seconds, memory)}")


def _label(folder: Path) -> str:
    path = folder / "label"
    return path.read_text() if path.exists() else "the look at what the configuration names\n"


def _why_stopped(status: int, seconds: str, memory: int) -> str:
    if status in (-signal.SIGPROF, -signal.SIGALRM):
        return (
            f"takes longer than {seconds} s; something in it repeats without end (a loop of the "
            "chat template, a pattern of the tokenizer, a number of layers): mend it, or take "
            "another"
        )
    if status in (0, -signal.SIGKILL, -signal.SIGABRT):
        return (
            f"needs more memory than {data_size(memory)}: something in it swells (a loop of the "
            "chat template, a file that unpacks to a thousand times its size); mend it, or take "
            "another"
        )
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"ended the process that read it ({name}); it is damaged: copy it anew, or take another"


def told_of(error: BaseException) -> dict[str, str]:
    """Write an error down for the process that asked."""
    return {"error": type(error).__name__, "text": bounded(str(error))}


def process_memory() -> int:
    """Return the bytes of data this process has asked the kernel for (proc(5), statm)."""
    pages = Path("/proc/self/statm").read_text().split()[5]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")

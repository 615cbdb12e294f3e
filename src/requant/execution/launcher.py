"""A stage in a process of its own: what kills it ends the stage, not the night."""

import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from requant.config.section import Section
from requant.errors import RequantError, TerminalError, TransientError, named_error
from requant.execution.stage import Metrics, Stage, StageContext
from requant.machine.clean_lines import CleanLines
from requant.machine.processes import end, environment, spawn
from requant.redaction import Redact, redactor

TAIL_LINES = 20
CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.2
QUIET_SECONDS = 2.0
"""After so long without a line, what might have been the beginning of a secret is said."""
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""What gloo and NCCL say in the ranks that live on when one is killed."""


class StageRequest(BaseModel):
    """What the process is asked to do, as JSON."""

    module: str
    """Where the stage's `STAGE` is declared."""
    section_type: str
    section: dict[str, Any]
    folders: dict[str, Path]
    out: Path
    work: Path
    seed: int
    device: str
    store: Path | None
    """The state folder, where the stage may keep answers of models."""
    forced: bool
    line: str


@dataclass(frozen=True)
class Launch:
    """How a stage's process is started and bounded."""

    log: Path
    """Gets all it prints."""
    ranks: int | None = None
    """Processes that train side by side, through accelerate; None starts one without it."""
    minutes: float | None = None
    """Wall time it may take."""
    redact: Redact = field(default_factory=lambda: redactor(()))
    """Hides secrets in what it says."""
    without: Collection[str] = ()
    """Variables of the environment that it does not get."""


def in_own_process(stage: Stage, launch: Launch) -> Callable[..., Metrics]:
    """Return a function with the signature of `stage.execute` that does its work in a new process.

    The process tells figures and progress through a named pipe in `context.work`; what it prints
    goes to the log file and, line by line, to the reporter. It never outlives this one.

    Raises (the function):
        RequantError: What the stage raised, with the same class and text.
        TransientError: If a signal killed the process (out of memory, a fault of the driver).
        TerminalError: If it took longer than `launch.minutes`, or ended without a word.
    """

    def execute(section: Section, context: StageContext, **folders: Path) -> Metrics:
        request = StageRequest(
            module=stage.execute.__module__,
            section_type=f"{type(section).__module__}:{type(section).__qualname__}",
            section=section.model_dump(mode="json"),
            folders=folders,
            out=context.out,
            work=context.work,
            seed=context.seed,
            device=context.device,
            store=None if context.store is None else context.store.root.resolve(),
            forced=context.forced,
            line=context.line,
        )
        asked = context.work / "request.json"
        asked.write_text(request.model_dump_json())
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        with launch.log.open("ab") as log, _fifo(context.work / "events") as events:
            command = _command(launch.ranks, context.device, asked, context.work / "events")
            output, child_output = os.pipe()
            try:
                env = {**environment(launch.without), "PYTHONUNBUFFERED": "1"}
                process = spawn(command, output=child_output, env=env)
            finally:
                os.close(child_output)
            conversation = _Conversation(stage.name, launch, context, log)
            try:
                conversation.listen(process, output, events)
            finally:
                os.close(output)
                # Also on a cancelled flow run: Prefect raises in this thread.
                status = end(process)
                conversation.end()
        return conversation.outcome(status)

    return execute


class _Conversation:
    """What a stage's process says until it ends."""

    def __init__(self, stage: str, launch: Launch, context: StageContext, log: BinaryIO) -> None:
        self._stage = stage
        self._launch = launch
        self._context = context
        self._log = log
        self._lines: list[str] = []
        self._clean = CleanLines(launch.redact, self._say)
        self._printed = time.monotonic()
        self._metrics: Metrics | None = None
        self._error: RequantError | None = None

    def listen(self, process: "subprocess.Popen[bytes]", output: int, events: int) -> None:
        minutes = self._launch.minutes
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        readers = {
            output: _LineReader(output, self._print),
            events: _LineReader(events, self._hear),
        }
        with selectors.DefaultSelector() as selector:
            for descriptor in readers:
                selector.register(descriptor, selectors.EVENT_READ)
            while process.poll() is None:
                for key, _ in selector.select(timeout=POLL_SECONDS):
                    if not readers[key.fd].read():
                        selector.unregister(key.fd)
                if time.monotonic() - self._printed > QUIET_SECONDS:
                    self._clean.flush()
                if deadline is not None and time.monotonic() > deadline:
                    raise TerminalError(
                        f"{self._stage}: took longer than runtime.stage_minutes={minutes:g}; its "
                        "checkpoints are kept: raise the limit and run again to go on from them"
                    )
        for reader in readers.values():
            reader.finish()

    def end(self) -> None:
        """Say what was held back."""
        self._clean.flush()

    def outcome(self, status: int) -> Metrics:
        if self._error is not None:
            raise self._error
        if self._metrics is not None and status == 0:
            return self._metrics
        number = _signal_of(status)
        if number is not None:
            cause = (
                "most likely the machine ran out of memory"
                if number == signal.SIGKILL
                else "a fault of a native library or driver"
            )
            raise TransientError(
                f"{self._stage}: its process was killed by {number.name}, {cause}; it goes on from "
                f"its last checkpoint. Its output: {self._launch.log}"
            )
        tail = "\n".join(self._lines[-TAIL_LINES:])
        if self._launch.ranks is not None and "(SIGKILL)" in tail:
            # torch's launcher names the rank that went first and ends the others itself.
            raise TransientError(
                f"{self._stage}: a rank was killed by SIGKILL, most likely the machine ran out of "
                f"memory; it goes on from its last checkpoint. Its output: {self._launch.log}"
            )
        raise TerminalError(
            f"{self._stage}: its process ended with status {status} and without a result; the end "
            f"of {self._launch.log}:\n{tail}"
        )

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._clean.add(line)

    def _say(self, line: str) -> None:
        self._lines = [*self._lines[-TAIL_LINES:], line]
        self._log.write(f"{line}\n".encode())
        self._log.flush()
        self._context.reporter.message(line)

    def _hear(self, line: str) -> None:
        event = json.loads(line)
        match event["event"]:
            case "metrics":
                self._context.reporter.metrics(event["values"], event["step"])
            case "progress":
                self._context.reporter.progress(event["done"], event["total"], event["unit"])
            case "message":
                self._print(event["text"])
            case "done":
                self._metrics = event["metrics"]
            case "failed" if self._error is None:
                self._error = _error_of(event, self._launch)


def _signal_of(status: int) -> signal.Signals | None:
    """Return the signal behind an exit status, as the kernel or a shell's convention gives it."""
    try:
        return signal.Signals(-status if status < 0 else status - 128)
    except ValueError:
        return None


def load_request(path: Path) -> tuple[Stage, Section, StageRequest]:
    """Read what a process is asked to do, in that process."""
    request = StageRequest.model_validate_json(path.read_bytes())
    stage: Stage = importlib.import_module(request.module).STAGE
    module, _, name = request.section_type.partition(":")
    section_type: type[Section] = getattr(importlib.import_module(module), name)
    return stage, section_type.model_validate(request.section), request


def _error_of(event: dict[str, Any], launch: Launch) -> RequantError:
    """Make the error again that the process raised, without secrets."""
    left_out = event["left_out"]
    text = launch.redact(event["text"], cut_after=left_out > 0)
    if left_out:
        text += f" ... ({left_out} more characters are in {launch.log})"
    if launch.ranks is not None and any(word in event["text"] for word in PEER_LOST):
        return TransientError(
            f"a rank lost another one, which was killed, most likely for memory: {text}"
        )
    known = named_error(event["error"])
    if known is not None:
        return known(text)
    kind = TransientError if event["transient"] else TerminalError
    return kind(f"{event['error']}: {text}")


def _command(ranks: int | None, device: str, request: Path, events: Path) -> list[str]:
    stage = ["-m", "requant.execution.child", str(request), str(events)]
    if ranks is None:
        return [sys.executable, *stage]
    if device == "cuda":
        launcher = ["accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", "--num_machines", "1", "--num_processes", str(ranks)]
    else:
        # accelerate's own launcher wants MPI for CPU ranks; on GPUs it is this one that it starts.
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, "-m", *launcher, *stage]


@contextmanager
def _fifo(path: Path) -> Iterator[int]:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    # Also a writer: without one a reader sees the end of the file before the process has begun.
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        path.unlink()


class _LineReader:
    """Reads a pipe without waiting and says its lines."""

    def __init__(self, descriptor: int, say: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._say = say
        self._rest = b""

    def read(self) -> bool:
        """Say every line that is whole; return whether more may come."""
        while True:
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except BlockingIOError:
                return True
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for line in whole:
                self._say(line.decode(errors="replace"))
            if not chunk:
                return False

    def finish(self) -> None:
        """Say all that is left."""
        self.read()
        if self._rest:
            self._say(self._rest.decode(errors="replace"))

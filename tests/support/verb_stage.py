"""A stage that does what its section says, to watch a stage's own process without a model."""

import os
import signal
import subprocess
import sys
import time

from requant.config.section import Section
from requant.errors import ParityError
from requant.execution.stage import Metrics, Stage, StageContext


class Verb(Section):
    """What to do."""

    verb: str


def execute(section: Verb, context: StageContext) -> Metrics:
    match section.verb:
        case "talk":
            print("printed")
            print("complained", file=sys.stderr)
            context.reporter.message("said")
            context.reporter.metrics({"loss": 0.5}, 3)
            context.reporter.progress(1, 2, "steps")
        case "refuse":
            raise ParityError("over the limit")
        case "reset":
            raise ConnectionResetError("peer")
        case "trip":
            raise ZeroDivisionError("by zero")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            print("last words", flush=True)
            os._exit(3)
        case "lose a rank":
            from accelerate import PartialState

            state = PartialState(cpu=True)
            if state.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            state.wait_for_everyone()
        case "leak":
            token = os.environ["HF_TOKEN"]
            print(f"before\n{token[:7]}\n{token[7:]}\nafter")
            print("got", *(name for name in ("MLFLOW_TRACKING_TOKEN", "T") if name in os.environ))
            sys.stdout.flush()
            raise RuntimeError(f"{'x' * 3490}{token}")
        case "pause":
            child = subprocess.Popen(["sleep", "60"])
            (context.work / "child").write_text(str(child.pid))
            print("pausing", flush=True)
            child.wait()
        case "hang":
            child = subprocess.Popen(["sleep", "60"])
            (context.work / "child").write_text(str(child.pid))
            time.sleep(60)
    (context.out / "verb.txt").write_text(section.verb)
    return {"seed": float(context.seed)}


STAGE = Stage("evaluate", 1, "evaluation", (), execute)

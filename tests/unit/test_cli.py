"""The command line answers at once."""

import signal
import subprocess
import sys

import pytest

from requant.cli.common import ended_by_signals
from requant.cli.nights import cause

HEAVY = ("torch", "transformers", "prefect", "mlflow", "datasets", "gptqmodel", "pydantic")


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from requant.cli import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        f"print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("imported:")
    commands = "init run status explain schema up down setup promote rollback notify lineage verify"
    for command in [*commands.split(), "export", "gc"]:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            "Flow run encountered an exception: ConfigError: evaluate.gate: 'x' is a: b",
            "evaluate.gate: 'x' is a: b",
        ),
        ("Flow run encountered an exception: KeyError: 'x'", "KeyError: 'x'"),
        ("promote: the gate refused it", "promote: the gate refused it"),
        ("", ""),
    ],
)
def test_a_failed_night_says_its_cause_and_not_who_carried_it(message: str, text: str) -> None:
    assert cause(message) == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_a_library_makes_an_error_of_is_one(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as interrupt:
            raise ValueError("could not determine the shape of object type") from interrupt
    with pytest.raises(ValueError, match="of its own"), ended_by_signals():
        raise ValueError("of its own")
    assert signal.getsignal(number) is before

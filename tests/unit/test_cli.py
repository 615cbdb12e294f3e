"""The command line answers at once."""

import subprocess
import sys

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
    for command in [*commands.split(), "gc"]:
        assert f" {command} " in result.stdout

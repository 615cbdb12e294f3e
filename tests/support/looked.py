"""What a look before the night finds of base and rows, in this process.

A process of its own takes five seconds to import the libraries. What it is for, that a look can be
stopped, `tests/stages/test_looks.py` tests.
"""

from requant.config import Config
from requant.machine.looking import unwatched
from requant.preflight.outside import look_from_child
from requant.preflight.problem import Problem


def looked_here(config: Config) -> list[str]:
    found = look_from_child(config.model_dump(mode="json"), unwatched)
    return [str(Problem(**problem)) for problem in found]

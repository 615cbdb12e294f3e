"""The gate: may this model serve? Pure arithmetic; docs/gate.md tells it with an example.

A promotion must be proved: on each guard that no more than a margin is lost, on a target that
something is gained. Noise makes proving harder, never easier.
"""

from requant.gate.decide import Decision, decide
from requant.gate.findings import Finding
from requant.gate.foresight import smallest_shown
from requant.gate.rules import Differences, Floor, Rule
from requant.gate.spending import Grant, Look, grant
from requant.gate.weighing import least_units

__all__ = [
    "Decision",
    "Differences",
    "Finding",
    "Floor",
    "Grant",
    "Look",
    "Rule",
    "decide",
    "grant",
    "least_units",
    "smallest_shown",
]

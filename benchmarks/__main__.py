"""Run every benchmark and print one table: `make bench`, or `python -m benchmarks hashing`."""

import sys
from importlib import import_module

from rich.console import Console
from rich.table import Table

CLAIMS = (
    "hashing",
    "merge",
    "pipeline_overhead",
    "cached_rerun",
    "evaluation",
    "gate_years",
    "ledger",
)


def main() -> None:
    """Print claim, measured figure, limit and verdict; exit 1 where a limit is missed."""
    table = Table("claim", "measured", "limit", "")
    missed = False
    for name in sys.argv[1:] or CLAIMS:
        measurement = import_module(f"benchmarks.{name}").measure()
        missed |= not measurement.holds
        verdict = "holds" if measurement.holds else "MISSED"
        table.add_row(measurement.claim, measurement.measured, measurement.limit, verdict)
    Console(width=150).print(table)
    raise SystemExit(missed)


main()

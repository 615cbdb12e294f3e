"""Any module can be the first one that is imported."""

import pkgutil
import subprocess
import sys

import requant

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    for known in [item for item in sys.modules if item.split(".")[0] == "requant"]:
        del sys.modules[known]
    importlib.import_module(name)
"""


def test_no_module_needs_another_to_be_imported_first() -> None:
    names = [module.name for module in pkgutil.walk_packages(requant.__path__, "requant.")]
    assert len(names) > 60
    subprocess.run([sys.executable, "-c", PROGRAM, *names], check=True)

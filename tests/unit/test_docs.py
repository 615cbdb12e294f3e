"""What the pages of docs/ list is what there is."""

import re
from pathlib import Path

import pytest

from requant.config import STAGE_NAMES
from requant.methods import METHODS
from requant.stages import STAGES
from tests.support.nights import EVERY

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rooms() -> dict[str, str]:
    """Folder on the page of the architecture to the lines that say what stands in it."""
    found: dict[str, str] = {}
    room = ""
    for line in page("architecture.md").split("```")[1].splitlines():
        name = re.match(r" *(\S+)/ ", line)
        room = name[1] if name else room
        found[room] = found.get(room, "") + line + "\n"
    return found


@pytest.mark.parametrize("folder", ["src/requant", "tasks", "flows"])
def test_every_module_stands_on_the_page_of_the_architecture(folder: str) -> None:
    page_of = rooms()
    missing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if path.stem not in {"__init__", *STAGE_NAMES}
        and not re.search(rf"\b{path.stem}\b", page_of.get(room_of(path), ""))
    ]
    assert not missing


def room_of(path: Path) -> str:
    parent = str(path.parent.relative_to(ROOT))
    return parent if parent == "src/requant" else path.parent.name


def test_every_stage_is_declared_and_stands_where_stages_are_listed() -> None:
    assert set(STAGES) == set(EVERY) == set(STAGE_NAMES)
    rows = re.findall(r"^\| (.*?) \|", page("artifacts.md"), re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(STAGE_NAMES)
    assert {kind for kind, _, _ in EVERY.values()} == {stage.kind for stage in STAGES.values()}


def test_the_page_of_the_merge_names_every_method_that_merges() -> None:
    listed = page("merge.md").split("Any other type is refused")[0]
    parts = re.split(r"[,;:.]|\band\b|\bby\b", listed)
    named = {re.sub(r"[\W_]", "", part.lower()) for part in parts}
    merging = {name.replace("_", "") for name, method in METHODS.items() if method.merges}
    assert not merging - named

"""What a collection may delete: folders of the store, and nothing that only looks like one."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from requant.cli import app
from requant.store import StageRecord, Store
from requant.store.gc import Garbage, collect, find_garbage

NOBODYS = "f" * 64


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder elsewhere that looks like a shelf of artifacts."""
    folder = tmp_path / "precious"
    (folder / NOBODYS).mkdir(parents=True)
    (folder / NOBODYS / "thesis.tex").write_text("years of work")
    return folder


@pytest.mark.parametrize("where", ["objects/ff", "objects", "work", "tmp", "objects/ff/x"])
def test_a_link_is_left_alone_and_so_is_what_it_leads_to(
    store: Store, night: dict[str, StageRecord], precious: Path, where: str
) -> None:
    link = store.root / where
    if link.is_dir():
        link.rename(store.root / "aside")
    link.parent.mkdir(parents=True, exist_ok=True)
    if where.endswith("/x"):
        link = link.with_name(NOBODYS)
        link.symlink_to(precious / NOBODYS)
    else:
        link.symlink_to(precious)
    garbage = collect(store, keep=1)
    assert (precious / NOBODYS / "thesis.tex").read_text() == "years of work"
    assert link in garbage.strange
    assert link.is_symlink()


def test_a_link_inside_of_garbage_goes_and_its_target_stays(store: Store, precious: Path) -> None:
    folder = store.object_path(NOBODYS)
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(precious)
    assert collect(store).folders == (folder,)
    assert not folder.exists()
    assert (precious / NOBODYS / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["objects/README", "objects/ab/notes", "tmp/\udcff", "work/..."])
def test_strange_files_are_named_and_left_alone(
    store: Store, night: dict[str, StageRecord], name: str
) -> None:
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("somebody's")
    assert collect(store, keep=1).strange == (path,)
    assert path.read_text() == "somebody's"


def test_a_collection_says_what_goes_before_it_goes(store: Store) -> None:
    folder = store.object_path(NOBODYS)
    folder.mkdir(parents=True)
    seen: list[tuple[Garbage, bool]] = []
    collect(store, before=lambda garbage: seen.append((garbage, folder.exists())))
    assert seen[0][0].folders == (folder,)
    assert seen[0][1]
    assert not folder.exists()


def test_the_command_names_what_it_leaves_alone(
    store: Store, night: dict[str, StageRecord], precious: Path
) -> None:
    if (store.objects / "ff").exists():
        (store.objects / "ff").rename(store.root / "aside")
    (store.objects / "ff").symlink_to(precious)
    (store.objects / "a\nb").write_text("")
    for words in (["gc", "--dry-run"], ["gc"]):
        result = CliRunner().invoke(app, [*words, "--state", str(store.root)])
        assert result.exit_code == 0, result.output
        assert f"left alone, it is none of requant's folders: {store.objects}/ff" in result.output
        assert "objects/a\\nb" in result.output
    assert find_garbage(store).folders == ()


def test_drafts_of_documents_whose_writer_was_killed_go(
    store: Store, night: dict[str, StageRecord]
) -> None:
    records = sorted(store.actions.glob("*.json"))
    folders = (store.actions, store.pins, store.results_path())
    torn = [folder / f".word.json.{'a' * 32}" for folder in folders]
    others = [store.actions / f".young.json.{'b' * 32}", store.actions / ".gitignore"]
    for path in (*torn, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    for path in (*torn, others[1]):
        os.utime(path, (0, 0))
    garbage = collect(store)
    assert garbage.torn == tuple(torn)
    assert garbage.in_words.endswith(", 3 torn documents")
    assert [path.exists() for path in (*torn, *others)] == [False, False, False, True, True]
    assert sorted(store.actions.glob("*.json")) == records

"""No model is asked twice: its answers are verified, and bound to all that decides them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig

from requant.config.evaluation import Evaluate
from requant.evaluation.answers import identity, recall
from requant.models.load import load_model
from requant.stages import evaluate
from requant.store import Store, materialise, publish
from requant.store.answers import answer_notes, read_kept
from requant.store.gc import find_garbage
from requant.store.health import examine
from requant.store.manifest import describe
from requant.store.pins import pin
from tests.stages.conftest import SilentReporter, make_context
from tests.support.adapters import save_adapter

Run = Callable[..., tuple[Path, SilentReporter]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture
def model(store: Store, tiny_base: Path) -> Path:
    """An artifact: only of one is it known which model has answered."""
    shutil.copytree(tiny_base, store.tmp / "model")
    return materialise(store, publish(store, "model", store.tmp / "model").digest)


@pytest.fixture
def run(store: Store, model: Path, tiny_data: Path, tmp_path: Path) -> Run:
    numbers = iter(range(100))

    def execute(forced: bool = False, **given: Path) -> tuple[Path, SilentReporter]:
        context = make_context(tmp_path / str(next(numbers)))
        context = replace(context, store=store, forced=forced)
        evaluate.execute(Evaluate(), context, **{"data": tiny_data, "base": model, **given})
        assert isinstance(context.reporter, SilentReporter)
        return context.out, context.reporter

    return execute


def told(reporter: SilentReporter) -> list[str]:
    return [text for text in reporter.messages if "answered before" in text]


def test_what_was_answered_is_not_asked_again(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = run()
    assert not told(asked)
    assert asked.steps

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("requant.models.load.load_model", never)
    again, known = run()
    # 12 documents of two texts, and of four options; what it writes to three questions is besides.
    assert told(known) == ["base: 72 of 72 requests were answered before"]
    assert not known.steps
    assert describe(again) == describe(first)


def test_a_model_and_itself_under_an_adapter_are_loaded_once(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(model, tmp_path / "other")
    save_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], lora_alpha=64), adapter)
    loaded = []

    def counted(folder: Path, *words: object, **named: object) -> object:
        loaded.append(folder)
        return load_model(folder, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("requant.models.load.load_model", counted)
    # In the order of the chain another model would stand between them.
    both, _ = run(forced=True, base_adapted=model, quantized=tmp_path / "other", adapter=adapter)
    assert loaded.count(model) == 1
    alone, _ = run(forced=True)
    scores = [json.loads((out / "scores.json").read_text()) for out in (both, alone)]
    assert scores[0]["base"] == scores[0]["quantized"] == scores[1]["base"]
    assert scores[0]["base_adapted"] != scores[0]["base"]


def test_only_new_documents_are_asked(
    run: Run, tiny_data: Path, tmp_path: Path, store: Store, model: Path
) -> None:
    run()
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    old = data / "evaluation" / "old_perplexity.jsonl"
    lines = old.read_text().splitlines(keepends=True)
    old.write_text("".join([*lines[1:], json.dumps({"id": 99, "text": "A new text."}) + "\n"]))
    _, reporter = run(data=data)
    assert told(reporter) == ["base: 71 of 72 requests were answered before"]
    (note,) = answer_notes(store)
    kept = read_kept(store, note)
    assert kept.of["inputs"].keys() == {"model"}
    # What it took the place of is gone.
    assert {path.name for path in store.objects.glob("*/*")} == {model.name, kept.digest}


def test_an_altered_answer_is_asked_again(run: Run, store: Store) -> None:
    run()
    (note,) = answer_notes(store)
    folder = materialise(store, read_kept(store, note).digest)
    path = folder / "answers.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    (problem,) = examine(store, deep=True).problems
    assert "was altered" in problem
    assert problem.endswith("no night believes these answers, it asks anew")
    _, reporter = run()
    assert not told(reporter)
    assert not examine(store, deep=True).problems


def test_a_note_of_another_model_is_not_believed(run: Run, store: Store, model: Path) -> None:
    run()
    (note,) = answer_notes(store)
    other = store.answers_path("0" * 64)
    shutil.copyfile(note, other)
    (problem,) = examine(store, deep=True).problems
    assert "stands in the place of another" in problem
    assert problem.endswith("remove it: the models are asked anew")
    of = identity(store, model, None, "cpu", 0)
    assert of is not None
    assert recall(store, of)
    assert recall(store, {**of, "seed": 1}) == {}


def test_a_copy_is_not_believed_to_be_what_its_manifest_says(
    run: Run, store: Store, model: Path, tmp_path: Path
) -> None:
    run()
    kept = {note: note.read_bytes() for note in answer_notes(store)}
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert identity(store, copy, None, "cpu", 0) is None
    _, reporter = run(base=copy)
    assert told(reporter) == []
    assert {note: note.read_bytes() for note in answer_notes(store)} == kept


def test_who_forces_the_stage_asks_anew(run: Run) -> None:
    run()
    _, reporter = run(forced=True)
    assert not told(reporter)


def test_answers_go_with_their_model(run: Run, store: Store, model: Path) -> None:
    run()
    (note,) = answer_notes(store)
    kept = store.object_path(read_kept(store, note).digest)
    pin(store, "tiny", "champion", model.name)
    assert kept not in find_garbage(store).folders
    store.pin_path("tiny-champion").unlink()
    garbage = find_garbage(store)
    assert {kept, model} <= set(garbage.folders)
    assert note in garbage.records

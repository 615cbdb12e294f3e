"""What transformers loads is what was checked: no pickle, no other file, nothing from elsewhere."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from requant.config.base import FolderBase, PrepareBase
from requant.errors import RequantError
from requant.merging.command import Request, plan_request
from requant.models.load import load_model
from requant.models.small_files import json_problems
from requant.models.tokenizer import load_tokenizer
from requant.stages import prepare_base
from tests.stages.conftest import Trained, make_context
from tests.support.pickles import Bomb, armed


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return armed(tmp_path, monkeypatch)


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def zeros(folder: Path, name: str) -> None:
    """Other weights of the same shapes."""
    tensors = {key: torch.zeros_like(value) for key, value in weights(folder).items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def another_file(folder: Path) -> str:
    zeros(folder, "other.safetensors")
    configure(folder, transformers_weights="other.safetensors")
    return "transformers_weights='other.safetensors' makes transformers load that file"


def another_index(folder: Path) -> str:
    zeros(folder, "other.safetensors")
    index = {"weight_map": dict.fromkeys(weights(folder), "other.safetensors")}
    (folder / "other.safetensors.index.json").write_text(json.dumps(index))
    configure(folder, transformers_weights="other.safetensors.index.json")
    return "makes transformers load that file"


def another_config(folder: Path) -> str:
    kernel = json.loads((folder / "config.json").read_text())
    kernel["_attn_implementation"] = "kernels-community/evil"
    (folder / "config.5.0.0.json").write_text(json.dumps(kernel))
    configure(folder, configuration_files=["config.5.0.0.json"])
    return r"configuration_files=\['config.5.0.0.json'\] makes transformers load that file instead"


def a_pickle_alone(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    return "requant reads no pickles"


def a_pickle_in_the_index(folder: Path) -> str:
    names = weights(folder)
    (folder / "model.safetensors").unlink()
    (folder / "evil.bin").write_bytes(pickle.dumps(Bomb()))
    index = {"weight_map": dict.fromkeys(names, "evil.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "is in 'evil.bin', which is no \\*.safetensors beside it"


def a_file_elsewhere(folder: Path) -> str:
    names = weights(folder)
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "is in '../elsewhere.safetensors', which is no"


def a_kernel(folder: Path) -> str:
    configure(folder, attn_implementation="somebody/kernels:attention")
    return "transformers may fetch the code of it from the hub and run it"


def a_kernel_of_a_part(folder: Path) -> str:
    configure(folder, text_config={"_attn_implementation": {"": "somebody/kernels"}})
    return "transformers may fetch the code of it from the hub and run it"


@pytest.mark.parametrize(
    "poison",
    [
        another_file,
        another_index,
        another_config,
        a_pickle_alone,
        a_pickle_in_the_index,
        a_file_elsewhere,
        a_kernel,
        a_kernel_of_a_part,
    ],
)
def test_what_would_load_something_else_is_refused(
    folder: Path, mark: Path, poison: Callable[[Path], str]
) -> None:
    says = poison(folder)
    with pytest.raises(RequantError, match=says):
        load_model(folder, "cpu")
    assert not mark.exists()


def test_an_adapter_in_the_folder_is_not_loaded_into_the_model(folder: Path, lora: Trained) -> None:
    for path in lora[0].iterdir():
        if path.name.startswith("adapter_"):
            shutil.copy(path, folder)
    with pytest.raises(RequantError, match="would load this adapter into the model beside it"):
        load_model(folder, "cpu")


def test_a_pickle_beside_the_weights_is_not_read(folder: Path, mark: Path, tiny_base: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    loaded, right = load_model(folder, "cpu"), load_model(tiny_base, "cpu")
    for ours, theirs in zip(loaded.parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not mark.exists()


def test_a_field_that_is_named_in_the_configuration_is_left_out_of_the_base(
    folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    plain = PrepareBase(source=FolderBase(kind="folder", path=folder))
    configure(folder, attn_implementation="somebody/kernels:attention", rope={"a": 1})
    with pytest.raises(
        RequantError, match=r"kernels:attention.*or name it in prepare_base.leave_o"
    ):
        prepare_base.execute(plain, make_context(tmp_path / "refused"))
    named = plain.model_copy(update={"leave_out": ("attn_implementation",)})
    context = make_context(tmp_path / "taken")
    prepare_base.execute(named, context)
    copied = json.loads((context.out / "config.json").read_text())
    assert copied == {**json.loads((tiny_base / "config.json").read_text()), "rope": {"a": 1}}
    assert named.key_fields() == plain.key_fields()
    before = prepare_base.content_digests(named)
    configure(folder, attn_implementation="somebody/others", rope={"a": 1})
    # What is left out decides nothing.
    assert prepare_base.content_digests(named) == before


def own_code(file: str, **fields: Any) -> Callable[[Path], str]:
    def poison(folder: Path) -> str:
        path = folder / file
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | fields))
        return rf"{file}: auto_map=.*Python code of the model's own.*with trust_remote_code would; "

    return poison


@pytest.mark.parametrize(
    "poison",
    [
        own_code("config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
        own_code("config.json", parts=[{"auto_map": {"AutoConfig": "evil.Config"}}]),
        own_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["owner/repo--evil.T", None]}),
        own_code("processor_config.json", auto_map={"AutoProcessor": "evil.Processor"}),
    ],
)
def test_the_name_of_foreign_code_does_not_travel(
    folder: Path, tmp_path: Path, poison: Callable[[Path], str]
) -> None:
    says = poison(folder)
    section = PrepareBase(source=FolderBase(kind="folder", path=folder))
    with pytest.raises(
        RequantError, match=f"{says}remove the field, or name auto_map in prepare_b"
    ):
        prepare_base.execute(section, make_context(tmp_path / "refused"))
    # A command has no configuration to name it in.
    with pytest.raises(RequantError, match=f"{says}give a copy of the folder without the field$"):
        plan_request(Request(base=folder, adapters=[], out=tmp_path / "out"))
    named = section.model_copy(update={"leave_out": ("auto_map",)})
    context = make_context(tmp_path / "taken")
    prepare_base.execute(named, context)
    assert not [path for path in context.out.glob("*.json") if "auto_map" in path.read_text()]
    assert json_problems(context.out) == []


def test_a_tokenizer_under_another_name_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.5.0.0.json")
    path = folder / "tokenizer_config.json"
    redirect = {"fast_tokenizer_files": ["tokenizer.5.0.0.json"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | redirect))
    says = r"fast_tokenizer_files=\['tokenizer.5.0.0.json'\] makes transformers load that file ins"
    section = PrepareBase(source=FolderBase(kind="folder", path=folder))
    for attempt in (
        lambda: load_tokenizer(folder),
        lambda: prepare_base.execute(section, make_context(tmp_path / "refused")),
        lambda: plan_request(Request(base=folder, adapters=[], out=tmp_path / "out")),
    ):
        with pytest.raises(RequantError, match=says):
            attempt()
    named = section.model_copy(update={"leave_out": ("fast_tokenizer_files",)})
    context = make_context(tmp_path / "taken")
    prepare_base.execute(named, context)
    assert "tokenizer.5.0.0.json" not in (context.out / "tokenizer_config.json").read_text()
    load_tokenizer(context.out)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "tokenizer_config.json",
            '{"z": 1, "z": 2, "auto_map": {"A": "evil.T"}}',
            "'z' is given",
        ),
        ("tokenizer_config.json", '{"z": "\\ud800", "auto_map": {"A": "evil.T"}}', "is not JSON"),
        ("generation_config.json", '{"max_length": "x"}', "max_length='x': expected a whole numb"),
        ("generation_config.json", '{"validate": {}}', "in the place of a method"),
        ("generation_config.json", '{"bad_words_ids": [[1000000000]]}', "holds 1000000000; expect"),
        ("generation_config.json", '{"suppress_tokens": [-1]}', "suppress_tokens: holds -1; expe"),
    ],
)
def test_small_files_that_may_not_travel_are_refused_by_a_merge_too(
    folder: Path, tmp_path: Path, file: str, text: str, says: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(RequantError, match=says):
        plan_request(Request(base=folder, adapters=[], out=tmp_path / "out"))
    section = PrepareBase(source=FolderBase(kind="folder", path=folder))
    with pytest.raises(RequantError, match=says):
        prepare_base.execute(section, make_context(tmp_path / "refused"))

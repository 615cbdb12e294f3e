"""`requant merge` and `requant compare` on folders of anybody's."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from requant.cli import app
from requant.errors import RequantError
from requant.machine.looking import unwatched
from requant.preflight.folders import look_from_child
from tests.stages.conftest import Trained


def requant(*words: object, fails: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == fails, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def text(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "own.jsonl"
    shutil.copyfile(tiny_data / "heldout.jsonl", path)
    return path


@pytest.fixture
def words(lora: Trained, tiny_base: Path, nf4: Path, text: Path, tmp_path: Path) -> list[object]:
    """The words of a merge that works."""
    adapter = tmp_path / "adapter"
    shutil.copytree(lora[0], adapter)
    return [
        *("merge", "--base", tiny_base, "--adapter", adapter, "--out", tmp_path / "out"),
        *("--text", text, "--sequences", 4, "--device", "cpu"),
    ]


def test_a_merge_by_hand_is_checked_and_compared(
    words: list[object], tiny_base: Path, nf4: Path, text: Path, tmp_path: Path
) -> None:
    said = requant(*words, "--trained-on", nf4)
    assert "14 tensors merged" in said
    assert re.search(r"against original \+ adapter: KL \S+ nats per token", said)
    assert "against quantized base + adapter" in said
    assert "does not record" not in said
    out = tmp_path / "out"
    assert load_file(out / "model.safetensors").keys() == (
        load_file(tiny_base / "model.safetensors").keys()
    )
    assert "holds something already; give a new folder" in requant(*words, fails=2)
    said = requant("compare", tiny_base, out, "--text", text, "--device", "cpu")
    assert "paired by sequence" in said
    mean, error = map(float, re.search(r"KL\(A \|\| B\), nats │ (\S+) │ (\S+)", said).groups())
    assert 0 < error < mean
    same = requant("compare", tiny_base, tiny_base, "--sequences", 2, "--device", "cpu")
    assert re.search(r"KL\(A \|\| B\), nats │ 0 │ 0 ", same)


def test_a_model_that_cannot_chat_is_merged_as_well(
    words: list[object], tiny_base: Path, nf4: Path, tmp_path: Path
) -> None:
    for name, model in (("base", tiny_base), ("nf4", nf4)):
        shutil.copytree(model, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").unlink()
    text = tmp_path / "plain.txt"
    text.write_text("A dictionary maps keys to values.\n\nA list is a sequence of values.\n")
    words[words.index("--base") + 1] = tmp_path / "base"
    words[words.index("--text") + 1] = text
    assert "14 tensors merged" in requant(*words, "--trained-on", tmp_path / "nf4")


def test_several_a_share_and_builtin_text(
    words: list[object], lora: Trained, tiny_base: Path, tmp_path: Path
) -> None:
    words = [word for word in words if word != "--text" and not str(word).endswith(".jsonl")]
    second = tmp_path / "second"
    shutil.copytree(lora[0], second)
    tensors = load_file(second / "adapter_model.safetensors")
    tensors = {name: t * 0.5 if "lora_B" in name else t for name, t in tensors.items()}
    save_file(tensors, second / "adapter_model.safetensors")
    (second / "provenance.json").unlink()
    more = ("--adapter", second, "--weight", 0.5, "--weight", 0.5, "--scale", 0.5)
    said = requant(*words, *more)
    assert f"{second}: trained on " in said
    assert "checked by names, shapes and parity" in said
    twinless = "nothing unmerged computes this; of the adapters merged whole, the worst:"
    assert twinless not in said
    out = ("--out", tmp_path / "ties")
    assert twinless in requant(*words, *more[:2], "--combine", "ties", *out)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "second", "out", "ties"}
    assert "1 weights for 2 adapters" in requant(
        *words[:5], "--adapter", second, "--weight", 1, "--out", tmp_path / "x", fails=2
    )


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("max_kl=1", "--limit max_kl: is no limit; expected one of parity_max_kl, "),
        ("trained_max_kl=much", "--limit trained_max_kl=much: Expected a number"),
        ("trained_max_kl", "--limit trained_max_kl=: Expected a number"),
    ],
)
def test_a_bad_limit_is_named(limit: str, told: str, words: list[object]) -> None:
    assert told in requant(*words, "--limit", limit, fails=2)


def test_what_fails_leaves_nothing(
    words: list[object], lora: Trained, tiny_base: Path, nf4: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (next(t for n, t in sorted(tensors.items()) if x in n) for x in ("lora_A", "lora_B"))
    # Finite weights; their product is not, or its square.
    for size, told in ((1e30, "is not finite as torch.bfloat16"), (1e13, "moves it by more than")):
        a[0], b[:, 0] = size, size
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert told in requant(*words, fails=2)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
    tight = [*words, "--limit", "rounding_max_kl_share=1e-9"]
    shutil.rmtree(adapter)
    shutil.copytree(lora[0], adapter)
    said = requant(*tight, fails=2)
    assert "over merge_fp16.rounding_max_kl_share=1e-09" in said
    assert "Use merge_fp16.dtype=float16" in said
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
    quantized = [nf4 if word == tiny_base else word for word in words]
    assert "is quantized (nf4); merging would round the update away" in requant(*quantized, fails=2)


def test_a_killed_merge_leaves_no_folder_of_that_name(words: list[object], tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("requant")), *map(str, words)]
    with subprocess.Popen(command) as merging:
        # The weights are written then; what is left are measuring and the name.
        while not list(tmp_path.glob(".out-*/unproved/config.json")):
            assert merging.poll() is None
            time.sleep(0.01)
        merging.kill()
    assert not (tmp_path / "out").exists()
    requant(*words)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_merge_that_is_told_to_end_leaves_nothing(words: list[object], tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("requant")), *map(str, words)]
    out = tmp_path / "deep" / "er" / "out"
    command[command.index("--out") + 1] = str(out)
    with subprocess.Popen(command) as merging:
        while not list(out.parent.glob(".out-*")):
            assert merging.poll() is None
            time.sleep(0.01)
        merging.terminate()
    assert merging.returncode == 130
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_fresh_process_compares(tiny_base: Path) -> None:
    command = [Path(sys.executable).with_name("requant"), "compare", tiny_base, tiny_base]
    done = subprocess.run(
        [*command, "--sequences", "2"], capture_output=True, text=True, check=True
    )
    assert "paired by sequence" in done.stdout


def broken(path: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(content) and None


def field(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (broken("adapter/adapter_config.json", ""), "adapter_config.json: is not JSON"),
        (
            broken("adapter/adapter_config.json", "[]"),
            "holds a list, expected an object (",
        ),
        (broken("adapter/tokenizer.json", "{"), "tokenizer.json: is no tokenizer"),
        (broken("base/model.safetensors.index.json", "{}"), "index.json: has no weight_map"),
        (
            broken(
                "base/model.safetensors.index.json", '{"weight_map": {"x.weight": "s.safetensors"}}'
            ),
            "names x.weight, which no *.safetensors beside it holds; copy the missing shards",
        ),
        (field("lora_alpha", "6"), "lora_alpha='6': Expected a number; save"),
        (field("r", None), "r=None and lora_alpha=8.0; expected a rank of 1 or more"),
        (field("target_modules", "("), "'(' is no pattern: missing )"),
        (field("peft_type", "FOO"), "peft_type=FOO is not among those requant has shown to merge"),
    ],
)
def test_a_broken_file_is_named_before_the_work(
    change: Callable[[Path], None],
    told: str,
    words: list[object],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    words[words.index("--base") + 1] = tmp_path / "base"
    change(tmp_path)
    assert told in requant(*words, fails=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "file"),
    [("base", "model.safetensors"), ("adapter", "adapter_model.safetensors")],
)
def test_weights_that_are_no_numbers_are_named_before_the_work(
    option: str, file: str, words: list[object], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    words[words.index("--base") + 1] = tmp_path / "base"
    tensors = load_file(tmp_path / option / file)
    name = min(tensors)
    tensors[name].view(-1)[3] = math.nan
    save_file(tensors, tmp_path / option / file, metadata={"format": "pt"})
    told = f"--{option} {tmp_path / option}: 1 tensors hold NaN or infinity: {name} of {file} (1 of"
    assert told in requant(*words, fails=2)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_hold_it_is_named(words: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words[words.index("--out") + 1] = tmp_path / "file" / "out"
    assert re.search(r"file/out: cannot be made: \S+/file: File exists", requant(*words, fails=2))
    assert "--scale 0: expected more than 0" in requant(*words, "--scale", 0, fails=2)
    assert "file: is no folder" in requant(*words, "--trained-on", tmp_path / "file", fails=2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": 5}', "line 1: text is 5; expected non-empty text"),
        ('{"messages": 3}', "line 1: messages is 3; expected [{"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            "line 1: the last message is by 'user'",
        ),
        ("{", "line 1: is not JSON"),
        ('{"prompt": "x"}', "line 1: has no column 'messages', nor those of another format"),
        ('{"text": ""}', "line 1: text is ''; expected non-empty text"),
        ('{"text": "a"}', "no document has two tokens"),
        ("", "holds no row"),
        (
            '{"text": "a b"}\n{"prompt": "a", "completion": "b"}',
            "holds both conversations and plain text",
        ),
    ],
)
def test_bad_text_is_named(line: str, told: str, tiny_base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(line + "\n")
    looked = {"models": {"--base": str(tiny_base)}, "text": str(bad), "sequences": 4}
    with pytest.raises(RequantError) as caught:
        look_from_child(looked, unwatched)
    assert told in " ".join(str(caught.value).split())


def test_text_is_read_before_the_work(words: list[object], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 5}\n')
    words[words.index("--text") + 1] = bad
    assert "line 1: text is 5; expected non-empty text" in requant(*words, fails=2)
    assert not (tmp_path / "out").exists()


def test_models_of_different_tokenizers_are_not_compared(tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert "have different tokenizers" in requant("compare", tiny_base, other, fails=2)
    one = tmp_path / "one.txt"
    one.write_bytes("a dictionary maps keys".encode("utf-16"))
    said = requant("compare", tiny_base, tiny_base, "--text", one, fails=2)
    assert "one.txt: is not UTF-8" in said
    one.write_text("a dictionary maps keys")
    said = requant("compare", tiny_base, tiny_base, "--text", one, fails=2)
    assert "holds one piece of text; standard errors take two" in said
    assert "nowhere: is no folder" in requant("compare", tiny_base, "nowhere", fails=2)

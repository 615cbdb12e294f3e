"""Every door holds against mutants of good files: refused by an error of requant's, or read.

No other exception, none that takes longer than 5 s, says more than 10 KB or what a terminal would
obey, takes more than 1 GB, or changes a file. `REQUANT_FUZZ=20` tries twenty times as many.
"""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from requant.adapters.folder import read_adapter
from requant.adapters.patterns import check_adapter_patterns
from requant.config.data import Columns
from requant.config.loading import apply_override, load_config
from requant.data.files import read_row_file
from requant.data.overlap import normalised
from requant.data.rows import write_jsonl
from requant.errors import RequantError
from requant.merging import plan_merge
from requant.models.base_folder import check_base
from requant.models.config import quantization_of, read_model_config
from requant.models.headers import logical_shapes, read_headers
from requant.models.pairing import check_complete, check_pairing
from requant.models.provenance import read_provenance, weights_digest
from requant.models.tokenizer import chat_template, token_ids, tokenizer_digest
from tests.support.adapters import save_adapter
from tests.support.chain import MICRO
from tests.support.merges import CASES, lora
from tests.support.mutants import mutated_bytes, mutated_json
from tests.support.row_files import rows

TIMES = int(os.environ.get("REQUANT_FUZZ", "1"))
SECONDS, SAID, MEMORY = 5, 10_000, 1 << 30


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """The same mutants each time, so that a night of tests does not fail by chance."""
    return settings(
        max_examples=examples * TIMES,
        deadline=SECONDS * 1000,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def holds(call: Callable[[], object], *folders: Path) -> None:
    """Call a door; see the head of this page."""
    before = {path: path.stat().st_mtime_ns for one in folders for path in one.rglob("*")}
    try:
        call()
    except RequantError as error:
        said = str(error)
        assert len(said) <= SAID, said[:500]
        assert said.replace("\n", "").isprintable(), ascii(said[:500])
    after = {path: path.stat().st_mtime_ns for one in folders for path in one.rglob("*")}
    assert after == before


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny_base, lora(), folder)
    return folder


def model_doors(folder: Path) -> None:
    """Everything that reads a model folder's files without a tensor."""
    for read in (
        read_model_config,
        read_headers,
        tokenizer_digest,
        token_ids,
        chat_template,
        read_provenance,
        weights_digest,
        check_complete,
        lambda one: quantization_of(read_model_config(one)),
        lambda one: logical_shapes(one, read_model_config(one)),
    ):
        holds(lambda read=read: read(folder), folder)


TAGGED = st.tuples(
    st.sampled_from(["!!bool", "!!int", "!!float", "!!timestamp", "!!set", "!!omap", "!!binary"]),
    st.text(max_size=9),
).map(" ".join)
QUANTIZED = {
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "architectures": ["Qwen3ForCausalLM"],
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "provenance.json"])
def test_small_files_of_a_model_folder(name: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    good = {**json.loads((tiny_base / "config.json").read_text()), **QUANTIZED}
    if name != "config.json":
        path = tiny_base / name
        good = json.loads(path.read_text()) if path.exists() else {"original": "0" * 64}

    @fuzzed(60)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / name).write_bytes(content)
        model_doors(folder)

    mutants()


def test_manifests_and_indices_of_a_model_folder(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"a": "model-00001-of-00001.safetensors", "b": "other.safetensors"},
    }
    manifest = (
        json.loads((tiny_base / "manifest.json").read_text() or "{}")
        if (tiny_base / "manifest.json").exists()
        else {"files": [{"path": "config.json", "size": 1, "sha256": "0" * 64}]}
    )

    @fuzzed(60)
    @given(mutated_json(index), mutated_json(manifest))
    def mutants(content: bytes, listed: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(content)
        (folder / "manifest.json").write_bytes(listed)
        model_doors(folder)

    mutants()


def test_weights(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    content = (tiny_base / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    @fuzzed(80)
    @given(mutated_json(header), st.booleans())
    def headers(text: bytes, honest: bool) -> None:
        size = len(text) if honest else length
        new = size.to_bytes(8, "little") + text + content[8 + length :]
        (folder / "model.safetensors").write_bytes(new)
        holds(lambda: read_headers(folder), folder)

    headers()

    @fuzzed(30)
    @given(mutated_bytes(content))
    def damaged(new: bytes) -> None:
        (folder / "model.safetensors").write_bytes(new)
        holds(lambda: read_headers(folder), folder)

    damaged()


def test_tokenizers(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    good = json.loads((tiny_base / "tokenizer.json").read_text())
    # A small one: mutants of a large one are as many as its words.
    good["model"]["vocab"] = dict(list(good["model"]["vocab"].items())[:300])
    good["model"]["merges"] = []

    @fuzzed(60)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(content)
        for read in (tokenizer_digest, token_ids, check_complete):
            holds(lambda read=read: read(folder), folder)

    mutants()


def test_a_whole_base(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    good = json.loads((tiny_base / "config.json").read_text())

    @fuzzed(40)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        lines: list[str] = []
        holds(lambda: lines.extend(check_base(folder, "field: x")), folder)
        said = "\n".join(lines)
        assert len(said) <= SAID
        assert said.replace("\n", "").isprintable()

    mutants()


GPTQ = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "dynamic": {"-:.*lm_head": {}, "+:.*q_proj": {"bits": 8}},
    "group_size": 64,
    "lm_head": False,
    "meta": {"quantizer": ["gptqmodel:5.0"], "damp_percent": 0.01},
    "quant_method": "gptq",
    "sym": True,
}


def test_a_pair(tiny_base: Path, nf4: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nf4, tmp_path / "quantized")
    good = json.loads((nf4 / "config.json").read_text())

    @fuzzed(30)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        holds(lambda: check_pairing(tiny_base, folder), folder)

    mutants()

    # What is not changed of the rest is as bitsandbytes and GPTQModel write it.
    @fuzzed(30)
    @given(st.sampled_from([good["quantization_config"], GPTQ]).flatmap(mutated_json))
    def quantizations(content: bytes) -> None:
        text = json.dumps({**good, "quantization_config": 0}).encode()
        (folder / "config.json").write_bytes(text.replace(b": 0}", b": " + content + b"}"))
        holds(lambda: check_pairing(tiny_base, folder), folder)
        holds(lambda: quantization_of(read_model_config(folder)), folder)
        holds(lambda: logical_shapes(folder, read_model_config(folder)), folder)

    (folder / "config.json").write_text(json.dumps(good))
    quantizations()

    header, data = parted((nf4 / "model.safetensors").read_bytes())

    @fuzzed(20)
    @given(st.one_of(mutated_json(header), other_tensors(header)))
    def headers(text: bytes) -> None:
        new = len(text).to_bytes(8, "little") + text + data
        (folder / "model.safetensors").write_bytes(new)
        holds(lambda: logical_shapes(folder, good), folder)
        holds(lambda: check_pairing(tiny_base, folder), folder)

    (folder / "config.json").write_text(json.dumps(good))
    headers()


PATTERNS = {
    "target_modules": r".*\.(q|v)_proj",
    "rank_pattern": {"layers.0.q_proj": 4},
    "alpha_pattern": {"v_proj": 8},
    "modules_to_save": ["lm_head"],
    "layers_pattern": "layers",
    "layers_to_transform": [0],
}


def test_adapters(adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    good = {**json.loads((adapter / "adapter_config.json").read_text()), **PATTERNS}
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(30)]

    @fuzzed(60)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / "adapter_config.json").write_bytes(content)
        holds(lambda: check_adapter_patterns(read_adapter(folder), names), folder)

    mutants()


OTHER_TYPES = ("ia3", "oft", "vera", "loha", "ln_tuning", "trainable_tokens")
"""Beside LoRA: factors, rotations, factors shared by layers, products, norms, rows."""


@pytest.fixture(scope="module")
def others(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in OTHER_TYPES}
    for name, folder in folders.items():
        save_adapter(tiny_base, CASES[name], folder)
    return folders


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_adapters_of_other_types(
    kind: str, others: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(others[kind], tmp_path / "adapter")
    good = json.loads((folder / "adapter_config.json").read_text())
    holds(lambda: plan_merge(tiny_base, [folder]), folder)

    @fuzzed(12)
    @given(mutated_json(good))
    def mutants(content: bytes) -> None:
        (folder / "adapter_config.json").write_bytes(content)
        holds(lambda: plan_merge(tiny_base, [folder]), folder, tiny_base)

    mutants()


@pytest.mark.parametrize("kind", ["lora", "ia3", "trainable_tokens"])
def test_names_and_shapes_of_an_adapter(
    kind: str, others: dict[str, Path], adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(others.get(kind, adapter), tmp_path / "adapter")
    header, data = parted((folder / "adapter_model.safetensors").read_bytes())

    @fuzzed(20)
    @given(st.one_of(mutated_json(header), other_tensors(header)))
    def mutants(text: bytes) -> None:
        new = len(text).to_bytes(8, "little") + text + data
        (folder / "adapter_model.safetensors").write_bytes(new)
        holds(lambda: plan_merge(tiny_base, [folder]), folder, tiny_base)

    mutants()


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Divide a safetensors file into its header and what follows."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@st.composite
def other_tensors(draw: st.DrawFn, header: dict[str, Any]) -> bytes:
    """A header whose bytes fit, of tensors with other names or shapes."""
    name = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    tensor = header[name]
    rest = {other: value for other, value in header.items() if other != name}
    parts = name.split(".")
    at = draw(st.integers(0, len(parts) - 1))
    word = draw(
        st.sampled_from(["", "x", "99", "lora_A", "base_layer", "weight", "layers", "\x1b["])
    )
    renamed = ".".join([*parts[:at], word, *parts[at + 1 :]])
    size = prod(tensor["shape"])
    shape = draw(
        st.sampled_from(
            [tensor["shape"][::-1], [size], [1, size], [size, 1], [size, 1, 1], [0, size]]
        )
    )
    changed = draw(st.sampled_from([{renamed: tensor}, {name: {**tensor, "shape": shape}}, {}]))
    return json.dumps({**rest, **changed}).encode()


CALL = {"function": {"name": "look", "arguments": '{"word": "x"}'}}
SHAPES = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "a", "weight": 1},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "assistant", "content": "b", "reasoning_content": "c"},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"a": 1.5}}}],
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "", "output": "b", "system": "c"},
    {"prompt": "a", "completion": "b"},
    {"text": "a"},
]


def rows_through(path: Path) -> None:
    """Read rows, and compare and write what was read."""
    found = read_row_file(path, Columns(), "list")
    for row in found:
        normalised(row.row)
    write_jsonl(path.parents[1] / "written.jsonl", [row.row for row in found])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: next(iter(shape)))
def test_rows(shape: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"

    @fuzzed(80)
    @given(mutated_json(shape))
    def mutants(line: bytes) -> None:
        path.write_bytes(json.dumps(rows(0, 1)[0]).encode() + b"\n" + line + b"\n")

        holds(lambda: rows_through(path), tmp_path)

    mutants()


def test_parquet(tmp_path: Path) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    path = tmp_path / "night.parquet"
    write_table(Table.from_pylist(SHAPES[:1] * 20), path)
    content = path.read_bytes()

    @fuzzed(80)
    @given(mutated_bytes(content))
    def mutants(new: bytes) -> None:
        path.write_bytes(new)
        holds(lambda: read_row_file(path, Columns(), "list"), tmp_path)

    mutants()


def test_typed_columns_of_parquet(tmp_path: Path) -> None:
    """A column may be of any type of Arrow's, where a text or a list is expected."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    path = tmp_path / "night.parquet"
    texts = pa.array(["a", None, "b"])
    columns = [
        texts.cast(pa.large_string()),
        texts.dictionary_encode(),
        pa.array([b"a", b"\xff", None]),
        pa.array([1, 2**62, None]),
        pa.array([1.5, float("nan"), None]),
        pa.array([True, False, None]),
        pa.array([None, None, None]),
        pa.array([0, 10**15, -(2**40)], pa.timestamp("ns", tz="UTC")),
        pa.array([0, 2**52, -(2**52)], pa.timestamp("s")),
        pa.array([0, 2**30, -(2**30)], pa.date32()),
        pa.array([1, 2**62, 3], pa.duration("ns")),
        pa.array([1, 2, 3], pa.time64("ns")),
        pa.array([None, 1, 2], pa.decimal128(38, 2)),
        pa.array([["a"], [], None]),
        pa.array([{"role": "user", "content": "a"}, None, {}]),
        pa.array([[{"role": "user", "content": 1}], None, [None]]),
        pa.array([[("user", "a")], [], None], pa.map_(pa.string(), pa.string())),
        pa.array([b"1234", None, b"abcd"], pa.binary(4)),
    ]
    names = [
        "messages",
        "text",
        "prompt",
        "completion",
        "conversations",
        "tools",
        "system",
        "extra",
    ]

    @fuzzed(120)
    @given(
        st.dictionaries(st.sampled_from(names), st.sampled_from(columns), min_size=1, max_size=4)
    )
    def typed(table: dict[str, Any]) -> None:
        write_table(pa.table(table), path, coerce_timestamps=None)

        holds(lambda: rows_through(path), tmp_path)

    typed()


def test_configurations(tmp_path: Path) -> None:
    path = tmp_path / "night.yaml"
    good, document = MICRO.encode(), yaml.safe_load(MICRO)

    @fuzzed(60)
    @given(mutated_bytes(good))
    def mutants(content: bytes) -> None:
        path.write_bytes(content)
        holds(lambda: load_config(path), tmp_path)

    mutants()

    @fuzzed(100)
    @given(mutated_json(document))
    def values(content: bytes) -> None:
        path.write_bytes(content)
        holds(lambda: load_config(path), tmp_path)

    values()

    @fuzzed(60)
    @given(st.text(max_size=30), st.one_of(st.text(max_size=60), TAGGED))
    def overrides(field: str, value: str) -> None:
        holds(lambda: apply_override(document, f"{field}={value}"))
        holds(lambda: apply_override(document, f"name={value}"))

    overrides()

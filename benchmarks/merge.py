"""Merging a model of 1.1 billion parameters, against copying its folder and against peft."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import permutations
from pathlib import Path

from benchmarks.measurement import ROOT, Measurement

MEMORY_LIMIT_GB = 0.6
COPY_LIMIT = 2.0
PEFT_LIMIT = 0.5
RANK = 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""The shape of TinyLlama 1.1B."""
SHARDS = 5

MAKE = """
from benchmarks.merge import make
make({folder!r})
"""
COPY = """
# Imported to begin as late as the others: what was freed before goes back to the host meanwhile.
import torch
import os, shutil
with timed():
    shutil.copytree({base!r}, {out!r})
    for entry in os.scandir({out!r}):
        with open(entry.path) as file:
            os.fsync(file.fileno())
"""
REQUANT = """
import os
from pathlib import Path
from requant.merging import plan_merge, write_plan
import torch
os.mkdir({out!r})
with timed():
    write_plan(plan_merge(Path({base!r}), [Path({adapter!r})]), Path({out!r}))
"""
PEFT = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
with timed():
    model = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, {adapter!r})
    model.merge_and_unload().save_pretrained({out!r}, max_shard_size="500MB")
"""
TIMED = """
import json, time
from contextlib import contextmanager


@contextmanager
def timed():
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([seconds, int(peak.split()[1]) / 1e6]))
"""


def measure() -> Measurement:
    """Run the three in turn, each in a process of its own; imports are not in the times.

    Copy and merge are done when their files are on the disk, as an artifact must be. How long the
    kernel takes to copy from its cache to its cache says little: it varies tenfold with the memory
    a virtual machine has at hand.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(MAKE.format(folder=name))
        runs: dict[str, list[tuple[float, float]]] = {"copy": [], "requant": [], "peft": []}
        # In every order: the memory one run frees is what the next one finds at hand.
        for order in permutations((("copy", COPY), ("requant", REQUANT), ("peft", PEFT))):
            for what, script in order:
                out = folder / what
                text = script.format(base=f"{name}/base", adapter=f"{name}/adapter", out=str(out))
                seconds, gigabytes = json.loads(_run(TIMED + text).splitlines()[-1])
                runs[what].append((seconds, gigabytes))
                _run(f"import shutil; shutil.rmtree({str(out)!r})")
                # What one run still has to write must not slow the next one.
                os.sync()
    copy, ours, peft = (statistics.median(s for s, _ in runs[what]) for what in runs)
    memory = max(gigabytes for _, gigabytes in runs["requant"])
    theirs = max(gigabytes for _, gigabytes in runs["peft"])
    return Measurement(
        claim="merging 1.1B bfloat16, rank 16 on all linear layers",
        measured=(
            f"{memory:.2f} GB at most, {ours / copy:.2f}x of copying, {ours / peft:.2f}x of peft "
            f"({ours:.1f} s; copy {copy:.1f} s; peft {peft:.1f} s and {theirs:.1f} GB)"
        ),
        limit=f"<= {MEMORY_LIMIT_GB} GB, {COPY_LIMIT}x, {PEFT_LIMIT}x",
        holds=memory <= MEMORY_LIMIT_GB and ours <= COPY_LIMIT * copy and ours <= PEFT_LIMIT * peft,
    )


def make(name: str) -> None:
    """Write base and adapter with random weights below a folder."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    base, adapter = Path(name, "base"), Path(name, "adapter")
    base.mkdir()
    adapter.mkdir()
    hidden, middle, vocabulary = (
        MODEL[f"{part}_size"] for part in ("hidden", "intermediate", "vocab")
    )
    narrow = hidden // 32 * MODEL["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(MODEL["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
            rows = narrow if leaf[0] in "kv" else hidden
            shapes[f"{prefix}.self_attn.{leaf}.weight"] = (rows, hidden)
        shapes |= {f"{prefix}.mlp.{leaf}_proj.weight": (middle, hidden) for leaf in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, middle)
        for leaf in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{leaf}.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    names = list(shapes)
    size = -(-len(names) // SHARDS)
    index = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[shard * size : (shard + 1) * size]
        save_file(
            {n: (torch.randn(shapes[n], generator=generator) * 0.02).bfloat16() for n in part},
            base / file,
            metadata={"format": "pt"},
        )
        index |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    (base / "config.json").write_text(json.dumps(MODEL))
    factors = {}
    for weight, shape in shapes.items():
        module = weight.removesuffix(".weight")
        if module.rpartition(".")[2] in LINEAR:
            sizes = {"lora_A": (RANK, shape[1]), "lora_B": (shape[0], RANK)}
            for leaf, factor in sizes.items():
                factors[f"base_model.model.{module}.{leaf}.weight"] = (
                    torch.randn(factor, generator=generator) * 0.02
                )
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": list(LINEAR)}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout

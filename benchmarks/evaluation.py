"""Evaluating a night's models, against lm-eval's command lines and against their forwards alone.

The night is a second one: base, champion and anchor were evaluated before on these documents, as a
line's are night after night where the held-out rows stay.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Measurement, Silent

COMMAND_LINES_LIMIT = 0.5
FORWARDS_LIMIT = 1.2
KNOWN = ("base", "anchor", "champion")
"""Models that have answered before."""
NEW = ("merged", "continued", "requantized")
DOCUMENTS = 12
"""Documents of each generated task: a token takes two cores 5 ms."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}
"""The shape of SmolLM2-135M."""

MAKE = """
from benchmarks.evaluation import make
make({folder!r})
"""
EVALUATE = """
from benchmarks.evaluation import evaluate
evaluate({folder!r}, {roles!r}, record={record})
"""
FORWARDS = """
from benchmarks.evaluation import forwards
forwards({folder!r})
"""


def measure() -> Measurement:
    """Time, in processes of their own and in turn, with imports and loading.

    - the stage evaluate on six models, of which three have answered before;
    - lm-eval's command line, once a model, on the same documents;
    - what the stage fed to the models, fed to them by a process that does nothing else.
    """
    roles = (*KNOWN, *NEW)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _python(MAKE.format(folder=str(folder)))
        _python(EVALUATE.format(folder=str(folder), roles=KNOWN, record=False))
        shutil.copytree(folder / "store" / "answers", folder / "before")
        # Before and after, as the machine may become slower or faster.
        first = _python(EVALUATE.format(folder=str(folder), roles=roles, record=True))
        lines = sum(_command_line(folder, role) for role in roles)
        alone = _python(FORWARDS.format(folder=str(folder)))
        shutil.rmtree(folder / "store" / "answers")
        (folder / "before").rename(folder / "store" / "answers")
        last = _python(EVALUATE.format(folder=str(folder), roles=roles, record=False))
        stage = (first + last) / 2
    return Measurement(
        claim="evaluating six models of SmolLM2-135M's shape on a second night",
        measured=(
            f"{stage:.0f} s: {stage / lines:.2f} of lm-eval's command lines ({lines:.0f} s), "
            f"{stage / alone:.2f} of the forwards alone ({alone:.0f} s)"
        ),
        limit=f"at most {COMMAND_LINES_LIMIT} and {FORWARDS_LIMIT}",
        holds=stage <= COMMAND_LINES_LIMIT * lines and stage <= FORWARDS_LIMIT * alone,
    )


def make(folder: str) -> None:
    """Make models of random weights, one a role, and a dataset artifact from real text."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from requant.config.base import PrepareBase
    from requant.config.data import PrepareData
    from requant.models.tokenizer import load_tokenizer
    from requant.stages import prepare_base, prepare_data
    from requant.store import Store, materialise, publish

    root = Path(folder)
    shape = {"hidden_size": 64, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    tiny = {"kind": "stdlib", "vocab_size": 4096, "steps": 1, **shape}
    base = PrepareBase.model_validate({"source": tiny})
    prepare_base.execute(base, _context(root / "tiny"))
    source = {"kind": "stdlib", "night": 1, "nights": 3}
    data = PrepareData.model_validate({"source": source, "max_evaluation_rows": DOCUMENTS})
    prepare_data.execute(data, _context(root / "data"))
    tokenizer = load_tokenizer(root / "tiny" / "out")
    config = LlamaConfig(**{**MODEL, "eos_token_id": tokenizer.eos_token_id})
    for seed, role in enumerate((*KNOWN, *NEW)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(root / "new")
        tokenizer.save_pretrained(root / "new")
        # Answers are kept of artifacts alone, which have a name.
        published = publish(Store(root / "store"), "model", root / "new")
        (root / role).symlink_to(materialise(Store(root / "store"), published.digest))


def evaluate(folder: str, roles: Sequence[str], *, record: bool) -> None:
    """Run the stage; write down what it feeds to the models, if asked to."""
    import torch

    from requant.config.evaluation import Evaluate
    from requant.models import load
    from requant.stages import evaluate as stage
    from requant.store import Store

    root = Path(folder)
    fed: list[tuple[str, torch.Tensor]] = []
    load_model = load.load_model

    def recording(path: Path, device: str) -> Any:
        model = load_model(path, device)

        def note(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            fed.append((str(path), given[0] if given else named["input_ids"]))

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    if record:
        load.load_model = recording  # type: ignore[assignment]
    out = tempfile.mkdtemp(dir=root)
    models = {role: root / role for role in roles}
    # All there are at once, so that the gate looks at none a second time.
    section = Evaluate.model_validate({"first_documents": DOCUMENTS, "examples": 0})
    context = replace(_context(Path(out)), store=Store(root / "store"))
    stage.execute(section, context, data=root / "data" / "out", **models)
    if record:
        torch.save(fed, root / "fed.pt")
        work = Path(out) / "work" / "tasks"
        (root / "tasks").symlink_to(work)


def forwards(folder: str) -> None:
    """Feed the models what the stage did, and take the logarithms that are summed."""
    import torch

    from requant.models.load import load_model

    fed = torch.load(Path(folder, "fed.pt"))
    for path in dict.fromkeys(path for path, _ in fed):
        model = load_model(Path(path), "cpu")
        with torch.no_grad():
            for _, tokens in (each for each in fed if each[0] == path):
                torch.log_softmax(model(tokens).logits, dim=-1)


def _context(folder: Path) -> Any:
    from requant.execution.stage import StageContext

    for part in ("out", "work"):
        (folder / part).mkdir(parents=True)
    return StageContext(folder / "out", folder / "work", 0, "cpu", Silent())


def _command_line(folder: Path, role: str) -> float:
    tasks = sorted(path.stem for path in (folder / "tasks").glob("*.yaml"))
    return _python(
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()",
        *("run", "--model", "hf", "--model_args", f"pretrained={folder / role},dtype=float32"),
        *("--tasks", ",".join(tasks), "--include_path", str(folder / "tasks")),
        *("--batch_size", "8", "--device", "cpu"),
    )


def _python(code: str, *arguments: str) -> float:
    """Run code in a process of its own; return its wall time in seconds."""
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"{code}: failed:\n{process.stdout}{process.stderr}")
    return time.monotonic() - started

"""A byte-level BPE tokenizer and a small Qwen3 model, trained on a list of documents."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.config.base import StdlibBase
from requant.corpus import base_conversations, base_documents
from requant.errors import TerminalError
from requant.execution.stage import Metrics, Reporter, StageContext
from requant.figures import figure
from requant.machine.library_noise import no_library_noise

if TYPE_CHECKING:
    from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
START_OF_MESSAGE = "<|im_start|>"
END_OF_MESSAGE = "<|im_end|>"

# ChatML. Every message is rendered alone, so the rendering of a conversation's beginning is a
# prefix of the rendering of the whole, and the generation prompt is a prefix of the answer.
# `generation` marks the assistant's tokens for a loss mask; the end mark belongs to them, or a
# trained model would never stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
FINAL_LEARNING_RATE = 0.1
REPORT_EVERY = 10


def train_on_stdlib(source: StdlibBase, context: StageContext) -> Metrics:
    """Train a tokenizer and a small Qwen3 model on the standard library's English.

    Returns:
        loss (nats per token, mean of the last tenth of the steps), parameters, tokens (of the
        training text) and epochs (passes over it).
    """
    import torch

    plain = base_documents()
    tokenizer = train_tokenizer(plain, source.vocab_size, source.sequence_length)
    conversations = [render(tokenizer, *pair) for pair in base_conversations()]
    model = new_model(source, tokenizer, context.seed)
    windows = token_windows(
        [*plain, *conversations], tokenizer, source.sequence_length, context.seed
    )
    parameters = sum(value.numel() for value in model.parameters())
    context.reporter.message(
        f"training {figure(parameters)} parameters on {windows.numel()} tokens "
        f"for {source.steps} steps of {source.batch_size * source.sequence_length}"
    )
    loss = train(
        model,
        windows,
        source,
        seed=context.seed,
        device=context.device,
        reporter=context.reporter,
    )
    with no_library_noise():
        model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(context.out)
        tokenizer.save_pretrained(context.out)
    _name_public_class(context.out / "tokenizer_config.json")
    return {
        "loss": loss,
        "parameters": float(parameters),
        "tokens": float(windows.numel()),
        "epochs": source.steps * source.batch_size / len(windows),
    }


def train_tokenizer(documents: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """Train a byte-level BPE tokenizer with ChatML marks.

    Args:
        documents: Training text.
        vocab_size: Tokens, the three marks included.
        max_length: Tokens the model is trained for.

    Returns:
        A `transformers.PreTrainedTokenizerFast` with `CHAT_TEMPLATE`; documents begin and are
        padded with `END_OF_TEXT`, messages end with `END_OF_MESSAGE`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = [END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_MESSAGE,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def new_model(section: StdlibBase, tokenizer: Any, seed: int) -> Any:
    """Return a `Qwen3ForCausalLM` with tied embeddings and seeded random weights, in float32."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    config = Qwen3Config(
        vocab_size=section.vocab_size,
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        num_key_value_heads=section.kv_heads,
        head_dim=section.hidden_size // section.heads,
        max_position_embeddings=section.sequence_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
    )
    return model


def render(tokenizer: Any, question: str, answer: str) -> str:
    """Render a question and its answer through the chat template."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def token_windows(documents: Sequence[str], tokenizer: Any, length: int, seed: int) -> "Tensor":
    """Pack documents, in an order set by `seed`, into windows of `length` tokens.

    Returns:
        int64 tensor (windows, length); every document begins with `END_OF_TEXT`. What does not
        fill the last window is dropped.

    Raises:
        TerminalError: If the text does not fill one window.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(documents), generator=generator).tolist()
    encoded = tokenizer([END_OF_TEXT + documents[index] for index in order], verbose=False)[
        "input_ids"
    ]
    stream = torch.tensor([token for tokens in encoded for token in tokens])
    windows = len(stream) // length
    if not windows:
        raise TerminalError(
            f"prepare_base.source.sequence_length: {length} is more than the {len(stream)} tokens "
            "of the training text; lower it"
        )
    return stream[: windows * length].view(windows, length)


def train(
    model: Any,
    windows: "Tensor",
    section: StdlibBase,
    *,
    seed: int,
    device: str,
    reporter: Reporter,
) -> float:
    """Train a causal language model in place with AdamW, warm-up and a cosine.

    Args:
        model: Causal LM in float32.
        windows: int64 (windows, tokens).
        section: steps, batch_size (sequences) and learning_rate (peak).
        seed: Of the order of the windows.
        device: cpu or cuda.
        reporter: Gets the curve `loss` (nats per token) and the progress.

    Returns:
        Mean loss of the last tenth of the steps, nats per token.

    Raises:
        TerminalError: If the loss stops being finite.
    """
    import torch

    model.to(device).train()
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=section.learning_rate,
        betas=BETAS,
        fused=True,
    )
    losses: list[float] = []
    for step, batch in enumerate(_batches(windows, section.batch_size, section.steps, seed), 1):
        for group in optimizer.param_groups:
            group["lr"] = section.learning_rate * _schedule(step, section.steps)
        tokens = batch.to(device)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TerminalError(
                f"prepare_base.source.learning_rate: {section.learning_rate} made the loss "
                f"{losses[-1]} at step {step} of {section.steps}; lower it"
            )
        if step % REPORT_EVERY == 0 or step == section.steps:
            recent = losses[-REPORT_EVERY:]
            reporter.metrics({"loss": sum(recent) / len(recent)}, step)
            reporter.progress(step, section.steps, "steps")
    model.eval()
    tail = losses[-max(1, section.steps // 10) :]
    return sum(tail) / len(tail)


def _batches(windows: "Tensor", size: int, steps: int, seed: int) -> Iterable["Tensor"]:
    """Yield `steps` batches; every window is seen once before any is seen again."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(windows), generator=generator)])
        yield windows[order[:size]]
        order = order[size:]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from 1 to `FINAL_LEARNING_RATE`."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2


def _name_public_class(path: Path) -> None:
    """Name the tokenizer class transformers 4 and vLLM know too, not transformers 5's backend."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

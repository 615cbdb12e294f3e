"""Tokenizers and chat templates of every kind, and rows encoded by them."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from requant.data.chat_template import Rules
from requant.data.samples import Encoded, encode_rows
from requant.data.turns import IGNORED

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does abs do?"},
    {"role": "assistant", "content": "Returns the absolute value."},
    {"role": "user", "content": "And round?"},
    {"role": "assistant", "content": "Rounds a number."},
]


CORPUS = [message["content"] for message in TALK] * 4 + ["user assistant system INST <>|_/ \n"]


SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + ns.system + m.content + ' [/INST]' }}"
    "{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


BARE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
)


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


TRIMMING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama2": (LLAMA2, "</s>"),
    "bare": (BARE, "</s>"),
    "zephyr": (ZEPHYR, "</s>"),
    "trimming": (TRIMMING, "<|im_end|>"),
}


def built(kind: str) -> Tokenizer:
    """Train a small BPE tokenizer that treats the space before a text as `kind` does."""
    byte_level = kind in {"byte_level", "trimmed"}
    tokenizer = Tokenizer(models.BPE(byte_fallback=not byte_level, unk_token=None))
    alphabet: list[str] = []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=kind)
    letters = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL + letters,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "trimmed":
        from tokenizers import processors

        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


KINDS = ("byte_level", "trimmed", "always", "first", "never", "prepend")


BUILT = {kind: built(kind) for kind in KINDS}


def fast(kind: str, template: str) -> PreTrainedTokenizerFast:
    text, end = TEMPLATES[template]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=BUILT[kind], bos_token="<s>", eos_token=end, unk_token="<unk>"
    )
    tokenizer.chat_template = text
    return tokenizer


def encode(
    tokenizer: Any, messages: list[dict[str, Any]], max_length: int | None = None, **options: Any
) -> Encoded:
    rules = options.pop("rules", Rules())
    return encode_rows(
        tokenizer, [("f, line 1", {"messages": messages})], rules, max_length, **options
    )


def labelled(sample: dict[str, list[int]]) -> list[int]:
    return [label for label in sample["labels"] if label != IGNORED]

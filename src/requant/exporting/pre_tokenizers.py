"""How llama.cpp cuts text before it merges bytes: by a name, which a GGUF file has to give.

llama.cpp's converter finds the name by a hash over the ids of one test text, so that a vocabulary
it has not seen has none. Here the rules themselves are looked up: tokenizer.json spells them, and
llama-vocab.cpp says which regular expressions a name stands for. Rules that are not in the table
are refused; none is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from requant.errors import ContractError
from requant.wording import shown

WAY_OUT = (
    "convert the 16-bit model with llama.cpp's own convert_hf_to_gguf.py, or export "
    "--format compressed-tensors"
)


@dataclass(frozen=True)
class Cut:
    """What decides where text is cut."""

    patterns: tuple[str, ...]
    """Regular expressions of Split, in order; empty where ByteLevel's own is the only one."""
    digits: bool
    """Each digit apart, before all else."""
    own: bool
    """Whether ByteLevel's own expression (GPT-2's) cuts, too."""
    whole_words: bool
    """A piece that is a token is taken whole, whatever the merges say (`ignore_merges`)."""


TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
NAMES: Mapping[Cut, str] = {
    Cut((), digits=False, own=True, whole_words=False): "gpt-2",
    Cut((), digits=True, own=True, whole_words=False): "smollm",
    Cut((HEAD + r"\p{N}" + TAIL,), digits=False, own=False, whole_words=False): "qwen2",
    Cut((HEAD + r"\p{N}{1,3}" + TAIL,), digits=False, own=False, whole_words=True): "llama-bpe",
}


def pre_tokenizer_name(tokenizer: Mapping[str, Any], file: str) -> str:
    """Return llama.cpp's name of the rules in a tokenizer.json.

    Args:
        tokenizer: Content of tokenizer.json, as the library `tokenizers` writes it.
        file: Named in errors.

    Raises:
        ContractError: If it is no byte-level BPE, or cuts by rules no name of the table stands for.
    """
    model = tokenizer.get("model") or {}
    marked = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type") != "BPE" or model.get("byte_fallback") or marked:
        kind = "sentencepiece" if model.get("byte_fallback") else shown(model.get("type"))
        raise ContractError(
            f"{file}: is a {kind} tokenizer; expected byte-level BPE, the one kind that this "
            f"export writes: {WAY_OUT}"
        )
    normalizer = tokenizer.get("normalizer")
    # llama.cpp normalizes nothing; of NFC its own converter says nothing either.
    if normalizer not in (None, {"type": "NFC"}):
        raise ContractError(
            f"{file}: normalizer={shown(normalizer)}; llama.cpp leaves text as it is: {WAY_OUT}"
        )
    cut = _cut(tokenizer.get("pre_tokenizer") or {}, bool(model.get("ignore_merges")))
    if cut is None or cut not in NAMES:
        raise ContractError(
            f"{file}: pre_tokenizer={shown(tokenizer.get('pre_tokenizer'))}, ignore_merges="
            f"{bool(model.get('ignore_merges'))}; these rules are none of "
            f"llama.cpp's {', '.join(NAMES.values())}, and with others it would cut text where the "
            f"model has not learned it: {WAY_OUT}"
        )
    return NAMES[cut]


def _cut(pre_tokenizer: Mapping[str, Any], whole_words: bool) -> Cut | None:
    """Read the rules; None where one of them is of a kind the table does not know."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = []
    digits = False
    for index, step in enumerate(before):
        regex = (step.get("pattern") or {}).get("Regex")
        if step == {"type": "Digits", "individual_digits": True} and index == 0:
            digits = True
        elif (
            step.get("type") == "Split"
            and isinstance(regex, str)
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
        ):
            patterns.append(regex)
        else:
            return None
    return Cut(tuple(patterns), digits, bool(last.get("use_regex", True)), whole_words)

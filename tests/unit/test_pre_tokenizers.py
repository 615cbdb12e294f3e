"""The rules of a tokenizer.json get llama.cpp's name for them, or none."""

import json
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from requant.errors import ContractError
from requant.exporting.pre_tokenizers import HEAD, TAIL, pre_tokenizer_name

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As tokenizer.json of Llama 3 spells it; Qwen2's takes one digit."""
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), BARE])


def content(rules: pre_tokenizers.PreTokenizer, **model: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = rules
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])


@pytest.mark.parametrize(
    ("rules", "whole_words", "name"),
    [
        (BYTES, False, "gpt-2"),
        (DIGITS, False, "smollm"),
        (split(LLAMA3.replace("{1,3}", "")), False, "qwen2"),
        (split(LLAMA3), True, "llama-bpe"),
    ],
)
def test_known_rules_have_a_name(
    rules: pre_tokenizers.PreTokenizer, whole_words: bool, name: str
) -> None:
    assert pre_tokenizer_name(content(rules, ignore_merges=whole_words), "file") == name


def test_the_table_spells_the_rules_as_the_releases_do() -> None:
    assert HEAD + r"\p{N}{1,3}" + TAIL == LLAMA3


@pytest.mark.parametrize(
    ("rules", "whole_words"),
    [
        (split(LLAMA3), False),
        (BYTES, True),
        (split(LLAMA3, "removed"), True),
        (split(r"\w+"), False),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False),
        (pre_tokenizers.Whitespace(), False),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES]), False),
        (pre_tokenizers.Sequence([BYTES, pre_tokenizers.Digits(individual_digits=True)]), False),
    ],
)
def test_rules_that_are_a_little_other_have_none(
    rules: pre_tokenizers.PreTokenizer, whole_words: bool
) -> None:
    with pytest.raises(ContractError, match=r"file: pre_tokenizer=.*these rules are none of"):
        pre_tokenizer_name(content(rules, ignore_merges=whole_words), "file")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), "file: is a 'WordPiece' tokenizer"),
        (models.BPE(byte_fallback=True), "file: is a sentencepiece tokenizer; expected byte"),
        (models.BPE(end_of_word_suffix="</w>"), "file: is a 'BPE' tokenizer; expected byte-level"),
    ],
)
def test_other_kinds_of_tokenizers_have_none(model: models.Model, told: str) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = BYTES
    with pytest.raises(ContractError, match=told):
        pre_tokenizer_name(json.loads(tokenizer.to_str()), "file")


def test_nfc_is_let_pass_and_other_normalizers_are_not() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTES
    tokenizer.normalizer = normalizers.NFC()
    assert pre_tokenizer_name(json.loads(tokenizer.to_str()), "file") == "gpt-2"
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ContractError, match=r"llama\.cpp leaves text as it is"):
        pre_tokenizer_name(json.loads(tokenizer.to_str()), "file")

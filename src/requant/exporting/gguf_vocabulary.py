"""A tokenizer as GGUF's metadata holds it: tokens, kinds, merges, special tokens, chat template."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.exporting.pre_tokenizers import WAY_OUT, pre_tokenizer_name
from requant.models.generation import GENERATION_NAME
from requant.models.tokenizer import chat_template, load_tokenizer, tokenizer_content
from requant.outside.json_text import read_object
from requant.wording import shown

if TYPE_CHECKING:
    from gguf import GGUFWriter


def add_vocabulary(writer: "GGUFWriter", folder: Path, rows: int) -> None:
    """Write the tokenizer of a model folder.

    Args:
        writer: Of the file.
        folder: Of the model.
        rows: Of the embedding; rows without a token get a name that no text has.

    Raises:
        ContractError: If llama.cpp would cut text otherwise than the tokenizer, or the tokenizer
            has tokens the model has none of.
    """
    from gguf import SpecialVocab

    path = folder / "tokenizer.json"
    if not path.exists():
        raise ContractError(
            f"{path}: is missing; GGUF is written from it: save the tokenizer anew with "
            "transformers' save_pretrained"
        )
    content = tokenizer_content(folder)
    name = pre_tokenizer_name(content, str(path))
    texts, kinds = _tokens(content, rows, path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    special = SpecialVocab(folder, load_merges=True, n_vocab=rows)
    special.add_special_token = _added_around(folder)
    # Of several templates the default one, as everywhere else.
    special.chat_template = chat_template(folder)
    special.special_token_ids |= _further_ends(folder, special.special_token_ids.get("eos"))
    special.add_to_gguf(writer, quiet=True)


def _tokens(content: dict[str, Any], rows: int, path: Path) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    ids = {number: (text, TokenType.NORMAL) for text, number in content["model"]["vocab"].items()}
    for token in content.get("added_tokens", ()):
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        ids[token["id"]] = (token["content"], kind)
    if over := [text for number, (text, _) in sorted(ids.items()) if number >= rows]:
        raise ContractError(
            f"{path}: holds {len(over)} tokens beyond the {rows} rows of the model's embedding, "
            f"the first {shown(over[0])}; resize the embedding of the 16-bit model, or take the "
            "tokens out"
        )
    listed = [ids.get(row, (f"[PAD{row}]", TokenType.UNUSED)) for row in range(rows)]
    return [text for text, _ in listed], [int(kind) for _, kind in listed]


def _added_around(folder: Path) -> dict[str, bool]:
    """Tell which special tokens the tokenizer itself puts around a text, by letting it do so."""
    tokenizer = load_tokenizer(folder)
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    added = {
        (bos, eos): [*([tokenizer.bos_token_id] * bos), *bare, *([tokenizer.eos_token_id] * eos)]
        for bos in (False, True)
        for eos in (False, True)
    }
    for (bos, eos), expected in added.items():
        if whole == expected:
            return {"bos": bos, "eos": eos}
    raise ContractError(
        f"{folder / 'tokenizer.json'}: makes {whole} of 'a', {bare} without special tokens; GGUF "
        f"can say that the beginning and the end of a text are marked, and nothing else: {WAY_OUT}"
    )


def _further_ends(folder: Path, known: int | None) -> dict[str, int]:
    """Return the other tokens at which generation stops; llama.cpp has names for two more."""
    path = folder / GENERATION_NAME
    ends = read_object(path).get("eos_token_id") if path.exists() else None
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    return dict(zip(("eot", "eom"), [end for end in others if end != known], strict=False))

"""generation_config.json of a model folder: what it may say, for it travels into every result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from requant.errors import ArtifactError
from requant.expected import expected
from requant.outside.json_text import read_object
from requant.wording import printable, shown

LOOKED_UP = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")
"""Fields of tokens at which generate() fails where the model has none of that number."""
GENERATION_NAME = "generation_config.json"


class _Fields(BaseModel):
    """Fields of transformers' GenerationConfig (5.23) with their types; null counts as absent."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    early_stopping: bool | str | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    use_mtp: bool | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    cache_config: dict[str, Any] | None = None
    max_cache_len: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    penalty_alpha: float | None = None
    diversity_penalty: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    renormalize_logits: bool | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: list[float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    sequence_bias: list[Any] | dict[str, float] | None = None
    token_healing: bool | None = None
    guidance_scale: float | None = None
    watermarking_config: dict[str, Any] | None = None
    num_return_sequences: int | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | list[int] | None = None
    encoder_no_repeat_ngram_size: int | None = None
    is_assistant: bool | None = None
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    assistant_ensemble_weight: float | None = None
    assistant_early_exit: int | None = None
    assistant_lookbehind: int | None = None
    target_lookbehind: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    prefill_chunk_size: int | None = None
    speculation_type: str | None = None
    disable_compile: bool | None = None
    low_memory: bool | None = None
    transformers_version: str | None = None


def generation_problems(folder: Path) -> list[str]:
    """Say what of a folder's generation_config.json nobody could generate with, one field a line.

    Fields that are not known may hold anything, but where they would take the place of a method.

    Args:
        folder: Of a model.
    """
    path = folder / GENERATION_NAME
    if not path.exists():
        return []
    try:
        content = read_object(path)
    except ArtifactError as error:
        return [str(error)]
    return [f"{path}: {problem}" for problem in _wrong(content)] or [
        f"{path}: {problem}" for problem in (*_unread(content), *_no_tokens(folder, content))
    ]


def _wrong(content: dict[str, Any]) -> Iterator[str]:
    try:
        _Fields.model_validate(content)
    except ValidationError as error:
        wanted: dict[str, list[str]] = {}
        for problem in error.errors():
            # Of a field with several types each says what it takes.
            wanted.setdefault(str(problem["loc"][0]), []).append(expected(problem))
        for name, each in wanted.items():
            taken = " or ".join(dict.fromkeys(text.removeprefix("Expected ") for text in each))
            yield (
                f"{name}={shown(content[name])}: expected {taken}; correct or remove the field, "
                "or copy the file anew"
            )


def _unread(content: dict[str, Any]) -> Iterator[str]:
    """Say what transformers itself would stop at, in the night or where the result is served."""
    from transformers import GenerationConfig

    known = set(dir(GenerationConfig)) - _Fields.model_fields.keys()
    for name in sorted(known & content.keys()):
        yield (
            f"{name}={shown(content[name])}: transformers would put this in the place of a method "
            "of its own; expected no field of that name: remove it"
        )
    if not known & content.keys():
        try:
            GenerationConfig.from_dict(dict(content))
        # A foreign value: it raises what it likes.
        except Exception as error:
            yield (
                f"transformers refuses it ({printable(error)[:300]}); expected what generate() "
                "takes: correct or remove the field, or copy the file anew"
            )


def _no_tokens(folder: Path, content: dict[str, Any]) -> Iterator[str]:
    """Say which tokens that generate() has to look up the model has none of."""
    path = folder / "config.json"
    rows = read_object(path).get("vocab_size") if path.exists() else None
    if type(rows) is not int:
        return
    for name in LOOKED_UP:
        each = content.get(name) or []
        ids = [number for one in each for number in (one if isinstance(one, list) else [one])]
        if over := [number for number in ids if not 0 <= number < rows]:
            yield (
                f"{name}: holds {shown(over[0])}; expected tokens of the model, from 0 to "
                f"{rows - 1} (config.json vocab_size={rows}): correct or remove the field, or copy "
                "the file anew"
            )

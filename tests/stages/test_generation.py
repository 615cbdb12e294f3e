"""generation_config.json is known by its fields before it travels into every result."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from requant.models.generation import GENERATION_NAME, _Fields, generation_problems


def told(folder: Path, content: Any) -> list[str]:
    (folder / GENERATION_NAME).write_text(json.dumps(content))
    return generation_problems(folder)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_length", "\x1b[31m", r"max_length='\x1b[31m': expected a whole number; correct or r"),
        ("max_length", 20.5, "max_length=20.5: expected a whole number; correct or remove the fie"),
        ("max_length", True, "max_length=True: expected a whole number"),
        (
            "do_sample",
            {},
            "do_sample={}: expected true or false; correct or remove the field, or c",
        ),
        ("temperature", "hot", "temperature='hot': expected a number"),
        ("temperature", float("inf"), "temperature=inf: expected a number that is neither infin"),
        ("eos_token_id", "</s>", "eos_token_id='</s>': expected a whole number or a list; corr"),
        ("eos_token_id", [1, "</s>"], "eos_token_id=[1, '</s>']: expected a whole number"),
        ("stop_strings", 3, "stop_strings=3: expected a string or a list;"),
        ("cache_config", [1], "cache_config=[1]: expected a mapping, such as {name: value}; "),
        ("early_stopping", "often", "transformers refuses it (`early_stopping` must be a boolean"),
        ("cache_implementation", "none such", "transformers refuses it (Invalid `cache_implemen"),
        ("validate", 1, "validate=1: transformers would put this in the place of a method"),
        ("__class__", "x", "__class__='x': transformers would put this in the place of a method"),
        ("to_json_string", [], "to_json_string=[]: transformers would put this in the place"),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_value_and_way_out(
    field: str, value: Any, said: str, tmp_path: Path
) -> None:
    (line,) = told(tmp_path, {"eos_token_id": 2, field: value})
    assert line.startswith(f"{tmp_path / GENERATION_NAME}: {said}")
    assert line.isprintable()


def test_each_wrong_field_is_told_and_a_file_of_another_shape(tmp_path: Path) -> None:
    assert len(told(tmp_path, {"max_length": "x", "do_sample": 1, "top_p": []})) == 3
    (line,) = told(tmp_path, [1])
    assert "holds a list, expected an object" in line


@pytest.mark.parametrize(
    "content",
    [
        {},
        # Of Qwen3, Llama 3, Gemma 2, GPT-2, Whisper and BART.
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
        {"temperature": 1, "top_p": 1, "eos_token_id": 128001, "repetition_penalty": 1.1},
        {"_from_model_config": True, "cache_implementation": "hybrid", "max_new_tokens": None},
        {"alignment_heads": [[2, 2]], "suppress_tokens": [1, 2], "task_to_id": {"x": 1}},
        {"forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "early_stopping": True},
        {"an_own_field": {"a": [1, "b", None]}, "chat_format": "chatml"},
    ],
)
def test_what_releases_hold_passes(content: Any, tmp_path: Path) -> None:
    assert told(tmp_path, content) == []


def test_every_field_of_this_transformers_is_known() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    # Objects of the library's own, or of decoders no night has; from_dict tells of those.
    own = {"compile_config", "constraints", "continuous_batching_config", "force_words_ids"}
    assert fields - _Fields.model_fields.keys() - own - {"dola_layers"} == set()


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert generation_problems(tmp_path) == []

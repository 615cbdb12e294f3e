"""What a field takes, in the words of YAML and JSON, where pydantic says it in those of Python."""

from collections.abc import Mapping
from typing import Any

_TAKEN = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "datetime_from_date_parsing": "a date and a time, such as 2025-01-01T00:00:00",
    "datetime_object_invalid": "a date and a time, such as 2025-01-01T00:00:00",
    "datetime_parsing": "a date and a time, such as 2025-01-01T00:00:00",
    "datetime_type": "a date and a time, such as 2025-01-01T00:00:00",
    "dict_type": "a mapping, such as {{name: value}}",
    "finite_number": "a number that is neither infinite nor NaN",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "missing": "a value",
    "model_attributes_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "multiple_of": "a multiple of {multiple_of}",
    "none_required": "null",
    "path_type": "a path, as a string",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "string_sub_type": "a string",
    "string_too_long": "a string of {max_length} characters at most",
    "string_too_short": "a string of {min_length} characters or more",
    "string_type": "a string",
    "string_unicode": "a string",
    "too_long": "a list of {max_length} at most",
    "too_short": "a list of {min_length} or more",
    "tuple_type": "a list",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a mapping with {discriminator}",
}
"""Types of pydantic's errors -> what is taken instead; in braces what the error knows of it."""


def expected(problem: Mapping[str, Any]) -> str:
    """Say what a field takes, without the value it was given.

    Args:
        problem: One of `pydantic.ValidationError.errors()`.
    """
    taken = _TAKEN.get(problem["type"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if taken is None:
        return message.replace("Input should be", "Expected")
    known = {name: str(value).replace("'", "") for name, value in problem.get("ctx", {}).items()}
    return f"Expected {taken.format_map(known)}"


def kind_of(value: Any) -> str:
    """Say of which kind a value is, without it."""
    kinds = {
        bool: "true or false",
        dict: "a mapping",
        float: "a number",
        int: "a number",
        list: "a list",
        str: "a string",
        type(None): "null",
    }
    return kinds.get(type(value), "a value")

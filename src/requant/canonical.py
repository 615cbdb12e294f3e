"""One spelling for every JSON value, so that equal values have equal digests and names."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Serialise `value` as sorted, compact UTF-8 JSON.

    Raises:
        ValueError: On NaN or infinity, which have no JSON spelling.
        TypeError: On a value JSON cannot hold.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest_of(value: Any) -> str:
    """Return the sha256 (64 hex digits) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def flattened(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested fields dotted names: `{"a": {"b": 1}}` becomes `{"a.b": 1}`; `{}` is a value."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

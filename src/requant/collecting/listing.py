"""The files that paths, folders and globs name, here and behind any address that fsspec knows."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from requant.collecting.reached import is_lasting, reached, reason_of
from requant.config.sources import SCHEME, FileRows, field_of
from requant.errors import ConfigError
from requant.wording import few, printable, shown

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
MAGIC = re.compile(r"[*?[]")
SILENT_SECONDS = 60.0
"""How long a server of http may say nothing; a whole download may take any time."""


@dataclass(frozen=True)
class Found:
    """A file of a source, or a folder of it that cannot be listed."""

    place: str
    """Path below the fixed part of the address, so that it stays when the whole moves."""
    path: str
    """As its file system calls it."""
    system: Any
    """File system of fsspec that holds it."""
    fault: str = ""
    """Why the folder cannot be listed."""

    @property
    def is_local(self) -> bool:
        """Whether it is of this machine."""
        return bool(self.system.protocol == ("file", "local"))

    @property
    def is_read(self) -> bool:
        """Whether its name says that it holds rows."""
        return bool(self.fault) or self.path.endswith(SUFFIXES)


@dataclass(frozen=True)
class Listing:
    """What the paths of a source name now."""

    files: tuple[Found, ...]
    """Those that are read, by name; one that two paths name once."""
    others: tuple[str, ...]
    """Places of the files that are not read, for their names."""
    empty: tuple[str, ...]
    """Paths that name a folder, and no file in it that is read: data comes and goes."""


def find_files(source: FileRows) -> Listing:
    """List the files of a source.

    Raises:
        ConfigError: If a path does not exist, or is a file that is not read for its name, or no
            package knows its protocol.
        TransientError: If what it names cannot be reached.
    """
    found: dict[str, Found] = {}
    empty = []
    for address in source.paths:
        named = f"{field_of(source)}.paths: {shown(address)}"
        with reached(named):
            system, path = _opened(address, named)
            listed = list(_named(system, path))
        if any(each.path == path and not each.is_read for each in listed):
            raise ConfigError(
                f"{named}: is a file, and does not end in {', '.join(SUFFIXES)}; name one that "
                "does, or its folder"
            )
        if not any(each.is_read for each in listed):
            empty.append(address)
        found |= {f"{system.protocol} {each.path}": each for each in listed}
    ordered = sorted(found.values(), key=lambda each: (each.place, each.path))
    return Listing(
        files=tuple(each for each in ordered if each.is_read),
        others=tuple(each.place for each in ordered if not each.is_read),
        empty=tuple(empty),
    )


def remarks(source: FileRows, listing: Listing) -> Iterator[str]:
    """Say what a person should know of a listing: paths without rows, files that are not read."""
    suffixes = ", ".join(SUFFIXES)
    for address in listing.empty:
        yield f"{source.name}: no file there ends in {suffixes}: {shown(address)} has no rows"
    if listing.others:
        count = len(listing.others)
        yield f"{source.name}: {count} files are none of {suffixes}: {few(listing.others)}"


def _opened(address: str, named: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if not SCHEME.match(address):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(address)
    try:
        system, path = url_to_fs(address, **_options(address))
    except ValueError as error:
        raise ConfigError(
            f"{named}: {printable(error)}; `python -c 'import fsspec; "
            "print(fsspec.available_protocols())'` lists what is known"
        ) from error
    # Another night of this process may have listed it.
    system.invalidate_cache()
    return system, path


def _options(address: str) -> dict[str, Any]:
    if not address.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    # Its own limit is five minutes for a whole file. `trust_env` lets it read ~/.netrc.
    limits = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
    return {"client_kwargs": {"timeout": limits, "trust_env": True}}


def _named(system: Any, path: str) -> Iterator[Found]:
    """Yield the files that a path names: itself, all below it, or those it is a pattern of."""
    from fsspec.utils import glob_translate

    magic = MAGIC.search(path)
    # A file may be called week[1].jsonl.
    if magic is not None and not system.exists(path):
        fixed = path[: magic.start()].rpartition("/")[0]
        pattern = path[len(fixed) :].lstrip("/")
        depth = None if "**" in pattern else pattern.count("/") + 1
        root = fixed or path[: path.startswith("/")]
        yield from _below(system, root, depth, re.compile(glob_translate(pattern)))
        return
    path = path.rstrip("/") or path
    if path.endswith(SUFFIXES) and system.info(path)["type"] != "directory":
        yield Found(printable(path.rpartition("/")[2]), path, system)
        return
    yield from _below(system, path, None, re.compile(".*", re.DOTALL))


def _below(system: Any, root: str, depth: int | None, wanted: re.Pattern[str]) -> Iterator[Found]:
    """Yield the files below a folder, but for hidden ones: what is being written is often hidden.

    Of a path that is a file itself, the file.

    Not by `find` of fsspec, which passes over a folder that it cannot list, or a link to one.
    """
    waiting, seen = [(root, 1)], {os.path.realpath(root)}
    while waiting:
        folder, level = waiting.pop()
        try:
            inside = sorted(system.ls(folder, detail=True), key=lambda info: str(info["name"]))
        except Exception as error:
            if folder == root or not is_lasting(error):
                raise
            place = printable(folder[len(root) :].lstrip("/"))
            yield Found(place, folder, system, fault=reason_of(error))
            continue
        for info in inside:
            path = str(info["name"]).rstrip("/")
            below = path[len(root) :].lstrip("/")
            if info["name"] == root and info["type"] == "file":
                yield Found(printable(root.rpartition("/")[2]), root, system)
            if path == folder or below.rpartition("/")[2].startswith("."):
                continue
            if info["type"] == "directory" or (info.get("islink") and system.isdir(path)):
                # A link may lead to a folder above.
                real = os.path.realpath(path)
                if real not in seen and (depth is None or level < depth):
                    seen.add(real)
                    waiting.append((path, level + 1))
            elif wanted.fullmatch(below):
                yield Found(printable(below), path, system)

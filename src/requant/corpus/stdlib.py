"""Docstrings and language topics of the running Python, found by parsing its source files."""

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from requant.canonical import digest_of
from requant.errors import TerminalError
from requant.store import hash_file

# Tests and demos are not prose, encodings are tables, and what was installed later differs from
# machine to machine.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_bundled",
        "dist-packages",
        "encodings",
        "idle_test",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-", "__phello__", "sitecustomize", "usercustomize")

# The base learns from this share of the modules; the nights and the held-out part take the others,
# so that what is held out is unseen by every model of the chain.
BASE_SHARE = 0.5
CONVERSATION_SHARE = 0.25

SUMMARY_CHARACTERS = range(24, 501)


@dataclass(frozen=True)
class Docstring:
    """One documented function, method or class."""

    module: str
    """Dotted name, e.g. json.decoder."""
    name: str
    """Qualified inside the module, e.g. JSONDecoder.decode."""
    signature: str
    """As in the source, one line: `def decode(self, s)` or `class JSONDecoder(object)`."""
    summary: str
    """First paragraph of the docstring on one line."""
    text: str
    """The whole docstring, without its indentation."""


@cache
def docstrings() -> tuple[Docstring, ...]:
    """Return every docstring of the standard library with a usable first paragraph.

    Nothing is imported: the files below `sysconfig.get_path("stdlib")` are parsed, in sorted order.

    Raises:
        TerminalError: If this Python ships without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = tuple(
        docstring
        for path in _source_files(root)
        for docstring in _docstrings_of(path, _module_name(path, root))
    )
    if not found:
        raise TerminalError(
            f"{root}: no standard-library source files with docstrings; the stdlib source kind "
            "needs a Python that ships them (python.org, Debian, conda and uv builds do)"
        )
    return found


@cache
def topics() -> tuple[tuple[str, str], ...]:
    """Return the (name, text) pairs of `pydoc_data.topics`, the language reference, sorted by name.

    Raises:
        TerminalError: If this Python ships without them.
    """
    path = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise TerminalError(
            f"{path}: cannot be read ({error.strerror}); the stdlib source kind needs a Python "
            "that ships pydoc_data (Debian: apt-get install libpython3-stdlib)"
        ) from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return tuple(sorted(ast.literal_eval(node.value).items()))
    raise TerminalError(f"{path}: holds no dictionary of topics")


def bucket(name: str, salt: str) -> float:
    """Map a name to a stable point in [0, 1): the first 52 bits of sha256(salt, name)."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def in_base(module: str) -> bool:
    """Tell whether a module's docstrings belong to the base's training text."""
    return bucket(module, "base") < BASE_SHARE


def instruction(docstring: Docstring) -> str:
    """The user's question a docstring's first paragraph answers."""
    return f"In the Python module {docstring.module}, what does this do?\n{docstring.signature}"


def base_documents() -> tuple[str, ...]:
    """Return the base's plain documents: every topic, and one document per base module."""
    modules: dict[str, list[str]] = {}
    for docstring in docstrings():
        if in_base(docstring.module) and not _as_conversations(docstring.module):
            entry = f"{docstring.signature}\n\n{docstring.text}"
            modules.setdefault(docstring.module, []).append(entry)
    pages = (f"{module}\n\n" + "\n\n".join(entries) for module, entries in modules.items())
    return (*(text for _, text in topics()), *pages)


def base_conversations() -> tuple[tuple[str, str], ...]:
    """Return the (question, answer) pairs the base meets, of base modules not in its documents.

    Without them the marks of the chat template would be untrained rows of the embedding, which an
    adapter on the linear layers cannot train either.
    """
    return tuple(
        (instruction(docstring), docstring.summary)
        for docstring in docstrings()
        if in_base(docstring.module) and _as_conversations(docstring.module)
    )


@cache
def corpus_digest() -> str:
    """Return the sha256 of all source files the text is read from.

    Hashing them takes a tenth of the time of parsing them, and every run needs the digest for its
    keys, also one in which there is nothing to do.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [*_source_files(root), root / "pydoc_data" / "topics.py"]
    return digest_of({path.relative_to(root).as_posix(): hash_file(path) for path in paths})


def _as_conversations(module: str) -> bool:
    return bucket(module, "conversations") < CONVERSATION_SHARE


def _source_files(root: Path) -> list[Path]:
    def wanted(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return not any(
            part in SKIPPED_FOLDERS or part.startswith(SKIPPED_PREFIXES) for part in parts
        )

    # Sorted by parts: the order of "/" among other characters must not depend on the platform.
    return sorted(
        (path for path in root.rglob("*.py") if wanted(path)),
        key=lambda path: path.relative_to(root).parts,
    )


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _docstrings_of(path: Path, module: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template or a file for another Python: no docstring can be read from it
    yield from _documented(tree.body, module, "")


def _documented(body: list[ast.stmt], module: str, prefix: str) -> Iterator[Docstring]:
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        name = f"{prefix}{node.name}"
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        summary = " ".join(text.split("\n\n")[0].split())
        if len(summary) in SUMMARY_CHARACTERS and summary.isprintable():
            yield Docstring(module, name, _signature(node), summary, text)
        if isinstance(node, ast.ClassDef):
            yield from _documented(node.body, module, f"{name}.")


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"

"""Names and texts from outside, made fit for where they go; two that differ stay two.

A task, a file, a list index or an error's text reaches MLflow, Prefect, paths and pages, and each
refuses or misreads other characters. Whatever is not written in the code passes through here.
"""

import hashlib
import re

KEY_CHARACTERS = 200
"""MLflow takes 250 for a parameter, a metric or a tag; stages put theirs in front of some."""
FILE_CHARACTERS = 100
"""Linux takes 255 bytes; a suffix and other names stand beside it."""
PARAM_CHARACTERS = 6000
"""MLflow's limit for a parameter's value (mlflow/utils/validation.py, 3.17)."""
TAG_CHARACTERS = 8000
"""MLflow's limit for a tag's value (as above)."""


def tracking_key(name: str) -> str:
    """Make a name of a parameter, metric or tag in MLflow: word characters and `_-. /:`.

    `inputs.train[0]` becomes `inputs.train_0_-5f1d2a3b`. It must also be a path that normalises to
    itself: without `..`, empty parts, or a slash at either end.
    """
    parts = (_kept(part, r"\w\-. :") for part in name.split("/"))
    safe = "/".join("_" if part in {"", ".", ".."} else part for part in parts)
    return _distinct(name, safe, KEY_CHARACTERS)


def tracking_value(text: str, limit: int = PARAM_CHARACTERS) -> str:
    """Cut a parameter's or tag's value to what MLflow takes, and say that and how much was cut.

    What no database can hold, half a surrogate pair and NUL, is written as an escape.
    """
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    said = f"… ({len(text)} characters in all, sha256 {digest})"
    return text[: limit - len(said)] + said


def artifact_key(name: str) -> str:
    """Make a key of an artifact in Prefect: lower-case letters, digits and dashes."""
    return _distinct(name, _kept(name.lower(), "a-z0-9-", "-"), KEY_CHARACTERS)


def file_name(name: str) -> str:
    """Make one part of a path: no slash, no leading dot, nothing a shell would read."""
    safe = _kept(name, "A-Za-z0-9._-")
    return _distinct(name, f"_{safe[1:]}" if safe[:1] in {".", ""} else safe, FILE_CHARACTERS)


def markdown(text: str) -> str:
    """Write text so that a Markdown page shows it as it is, in a table's cell too."""
    # An underscore inside a word, as in the names of stages, is an underscore.
    return re.sub(r"[\\`*\[\]<>|#~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def markdown_block(text: str) -> str:
    """Quote a text of several lines in Markdown, as it is.

    A fence would do with less, but pages do not wrap its lines: MLflow's shows the first half of an
    error and hides the way out.
    """
    # Two spaces end a line; a sign at its beginning would make a list or a heading.
    lines = (re.sub(r"^([-+=])", r"\\\1", markdown(line)) for line in text.splitlines())
    return "\n".join(f"> {line}  " for line in lines)


def _kept(name: str, allowed: str, instead: str = "_") -> str:
    return re.sub(f"[^{allowed}]", instead, name)


def _distinct(name: str, safe: str, limit: int) -> str:
    """Tell a changed name from others that would come out alike, by a part of its sha256."""
    if safe == name and len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[: limit - len(digest) - 1]}-{digest}"

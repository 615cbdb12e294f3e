"""Secrets that somebody wrote out in the arguments of a program, known by the name before them."""

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from requant.config.plain_secrets import ADDRESS, is_harmless, text_fault, user_of

MAX_ITEMS, MAX_LETTERS, MAX_IN_ALL = 1000, 10_000, 100_000
"""Items of a command, characters of each and of all: reading an item takes its length squared."""

SECRET_NAMES = (
    *("token", "password", "passwd", "passphrase", "secret", "apikey", "credential"),
    *("credentials", "authorization", "cookie"),
)
"""How the name of a secret ends, written together too: authToken, PGPASSWORD."""
_WHOLE_NAMES = frozenset({"pass", "pwd", "bearer"})
_KEYS = frozenset(
    {"access", "account", "api", "auth", "encryption", "master", "private", "secret", "service"}
    | {"shared", "signing"}
)
"""Words before `key` that make it a secret; a key of a table or a file is none."""
_ENDINGS = frozenset({"b", "base", "literal", "plain", "string", "text", "value"})
"""Words after it that say how it is written: passwordBase64, token_b64, SECRET_KEY_BASE."""
_TOKENS_OF_TEXT = frozenset(
    {"begin", "bos", "cls", "end", "eos", "image", "mask", "max", "min", "new", "num", "pad"}
    | {"sep", "special", "start", "stop", "unk"}
)
"""Words before `token` that make it one of a tokenizer."""
_NAMING = frozenset({"existing", "pull"})
"""Words before `secret` that make it the name of one: existingSecret, imagePullSecret."""
_CONTAINERS = frozenset({"docker", "nerdctl", "podman"})
_ACCOUNTS = re.compile(r"(?:[a-z_][a-z0-9_-]{0,31}|\d+):(?:[a-z_][a-z0-9_-]{0,31}|\d+)")
_SECRET_BY_NAME = re.compile(r"(?:id|source|type)=[\w./-]+(?:,\w+=[\w./-]+)*")
"""What `docker build --secret` takes: where a secret is, not what it is."""

_OPTION = re.compile(r"--?([A-Za-z][\w.-]{0,80})")
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9_])([A-Za-z][\w.-]{0,80})([\"'\\]{0,4})\s{0,4}(?:\+?=|:(?!//|\?|-?\}))\s{0,4}"
    r"(?=([\"'\\]{0,4})(?:(?:apikey|basic|bearer|digest|token)\s+)?[\"'\\]{0,4}([^\s\"'\\,;&|]*))",
    re.IGNORECASE,
)
"""`--token=X`, `TOKEN=X`, `TOKEN+=X`, `Authorization: Bearer X`, `{"token": "X"}`; the value
is only looked at, so that of a=token=X each `=` is seen. `${TOKEN:?}` and `${TOKEN:-}`
assign nothing."""
_BEARER = re.compile(r"\bbearer\s+([^\s\"'\\,;&|]{8,})", re.IGNORECASE)
_USER_OPTION = re.compile(r"(?:-u|--(?:proxy-)?user|--auth|--basic-auth|--creds)")
_USER_GIVEN = re.compile(r"(?:-u=?|--(?:proxy-)?user=|--auth=|--basic-auth=|--creds=)(.+)")


def length_fault(arguments: Sequence[str]) -> str | None:
    """Say that a command is longer than any program's, and is not read; None where it is not."""
    if len(arguments) > MAX_ITEMS:
        return (
            f"has {len(arguments)} items, at most {MAX_ITEMS} are taken; put them into a file that "
            "the program reads"
        )
    for number, word in enumerate(arguments, 1):
        if len(word) > MAX_LETTERS:
            return (
                f"item {number} of {len(arguments)} has {len(word)} characters, at most "
                f"{MAX_LETTERS} are taken; put it into a file that the program reads"
            )
    if (letters := sum(map(len, arguments))) > MAX_IN_ALL:
        return (
            f"has {letters} characters in all, at most {MAX_IN_ALL} are taken; put them into a "
            "file that the program reads"
        )
    return None


def assigned_fault(text: str) -> str | None:
    """Say that a text gives a value to a name that says secret; None where it does not.

    Args:
        text: Of a few thousand characters: it takes their square.
    """
    return _assigned_fault(text, ())


def argument_fault(arguments: Sequence[str]) -> str | None:
    """Say which argument of a program is a secret, and by what; None where none is known as one.

    Besides what `text_fault` finds those are addresses with a user, a query or a fragment, and what
    follows a name that says secret. Lines for a shell are read too. What is too long to be
    read is said instead.

    Args:
        arguments: Of a program, its name first.
    """
    if (long := length_fault(arguments)) is not None:
        return long
    texts = [(number, text) for number, word in enumerate(arguments, 1) for text in _texts(word)]
    pieces = [(number, piece) for number, text in texts for piece in _pieces(text)]
    accounts = _accounts([piece for _, piece in pieces])
    for number, word in texts:
        why = text_fault(word) or _address_fault(word) or _assigned_fault(word, accounts)
        if why is not None:
            return f"item {number} of {len(arguments)} {why}"
    for (_, option), (number, value) in pairwise(pieces):
        why = _follows_fault(option, value, accounts)
        if why is not None:
            return f"item {number} of {len(arguments)} {why}"
    return None


def secret_word(name: str) -> str | None:
    """Return the word by which a name says that its value is a secret; None where it says none.

    `--token-file`, `--max-tokens` and `--no-password` say none.
    """
    parts: list[str] = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    while len(parts) > 1 and parts[-1] in _ENDINGS:
        parts.pop()
    if not parts or parts[0] in {"no", "without"}:
        return None
    last, before = parts[-1], parts[-2] if len(parts) > 1 else ""
    if last == "key" and before in _KEYS:
        return f"{before} key"
    if last in _WHOLE_NAMES:
        return last
    if (last == "token" and before in _TOKENS_OF_TEXT) or (last == "secret" and before in _NAMING):
        return None
    return next((word for word in SECRET_NAMES if last.endswith(word)), None)


def _address_fault(word: str) -> str | None:
    for scheme, rest in ADDRESS.findall(word):
        user = user_of(scheme, rest)
        if user is not None and not is_harmless(user.partition(":")[2] or user):
            return "holds an address with a user or a password"
        address, _, fragment = rest.partition("#")
        if not is_harmless(fragment):
            return "holds an address with a fragment (#...)"
        query = address.partition("?")[2]
        if not all(is_harmless(each.partition("=")[2] or each) for each in query.split("&")):
            return "holds an address with a query (?...)"
    return None


def _accounts(words: Sequence[str]) -> set[str]:
    """Find the `user:group` that a container runs as: what follows the first -u of its program."""
    found, container = set(), False
    for option, following in pairwise([*words, ""]):
        if (name := option.rpartition("/")[2]) in _CONTAINERS or name == "curl":
            container = name != "curl"
        name, _, given = option.partition("=")
        value = given or following
        if container and name in {"-u", "--user"}:
            container = False
            if _ACCOUNTS.fullmatch(value):
                found.add(value)
    return found


def _assigned_fault(word: str, accounts: Collection[str]) -> str | None:
    for name, closed, opened, value in _ASSIGNED.findall(word):
        said = secret_word(name)
        if said is None or (not opened and _is_code(word, name, value, quoted=bool(closed))):
            continue
        if not _stands_for(said, value):
            return f"gives a value to a name that says {said}"
    for value in _BEARER.findall(word):
        if not is_harmless(value):
            return "holds a bearer token"
    given = _USER_GIVEN.fullmatch(word)
    if given is None or given[1] in accounts or not _is_user(given[1]):
        return None
    return "holds a user and a password"


def _stands_for(said: str, value: str) -> bool:
    """Tell whether a value, of a name that says secret, only says where the secret is."""
    return is_harmless(value) or (said == "secret" and bool(_SECRET_BY_NAME.fullmatch(value)))


def _is_code(word: str, name: str, value: str, *, quoted: bool) -> bool:
    """Tell whether a value without quotes is a variable or call: `{"token": t}`, `token = f()`."""
    if (quoted and not value[:1].isdigit()) or value.rstrip(")}] ") == name:
        return True
    return " " in word and re.match(r"[A-Za-z_][\w.]*[(\[]", value) is not None


def _follows_fault(option: str, value: str, accounts: Collection[str]) -> str | None:
    if _USER_OPTION.fullmatch(option) and value not in accounts and _is_user(value):
        return "holds a user and a password"
    named = _OPTION.fullmatch(option)
    said = secret_word(named[1]) if named else None
    # An option after an option: the first takes no value.
    if said is None or re.match(r"--|-[A-Za-z]$", value) or _stands_for(said, value):
        return None
    return f"follows an option that says {said}"


def _is_user(value: str) -> bool:
    """Tell whether a value is `user:password`; numbers are the ids of an account."""
    user, colon, password = value.strip("\"'").partition(":")
    if not (user and colon and password) or password.startswith("//") or is_harmless(value):
        return False
    return not (is_harmless(password) or (user.isdigit() and password.isdigit()))


def _texts(word: str) -> list[str]:
    """Take the commands a shell would run, `$(...)`, out of a text; they follow it, on their own.

    What stands beside one is seen so: in TOKEN=$(cat x)y it is the y.
    """
    found: list[str] = []
    # Of each command that is open: how it opened, what it holds, and its own open brackets.
    opened: list[tuple[str, list[str], list[None]]] = [("", [], [])]
    for piece in re.findall(r"\$\(|[()`$]|[^()`$]+", word):
        opener, held, brackets = opened[-1]
        if piece == "$(" or (piece == "`" and opener != "`"):
            opened.append((piece, [], []))
        elif (piece == "`") or (piece == ")" and opener == "$(" and not brackets):
            opened.pop()
            found.append("".join(held))
            opened[-1][1].append("${_}")
        else:
            if piece == "(":
                brackets.append(None)
            elif piece == ")" and brackets:
                brackets.pop()
            held.append(piece)
    rest = "".join(part for opener, held, _ in opened for part in (opener, *held))
    return [rest, *found]


def _pieces(word: str) -> Iterator[str]:
    """Split a line for a shell into its words; what is no line is one."""
    if not re.search(r"\s", word) or is_harmless(word):
        yield word
        return
    try:
        yield from shlex.split(word)
    except ValueError:
        yield from word.split()

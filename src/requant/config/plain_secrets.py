"""Secrets that somebody wrote out in a text, known by their form.

Not by how random they look: that guesses, and refuses digests. A secret whose form nothing marks,
such as a bare word, is not found: `requant.config.secret_arguments` goes by the name before it too.
detect-secrets and its like read files for the tokens of vendors; they know neither options and
their arguments nor the tokens of Hugging Face.
"""

import re

TOKENS = {
    "of Hugging Face": r"hf_[A-Za-z0-9]{30,}",
    "of GitHub": r"(?:gh[opsur]_|github_pat_)[A-Za-z0-9_]{16,}",
    "of GitLab": r"gl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_-]{12,}",
    "of OpenAI's kind": r"sk-(?:(?:proj|ant|svcacct|or)-[\w-]{8,}|(?=[a-zA-Z]*\d)[a-zA-Z0-9]{12,})",
    "of Stripe": r"[rs]k_(?:live|test)_[A-Za-z0-9]{8,}",
    "of Slack": r"xox[a-z]-[A-Za-z0-9-]{8,}",
    "of AWS": r"A(?:K|S)IA[A-Z0-9]{12,}",
    "of Google": r"AIza[A-Za-z0-9_-]{30,}",
    "of Google OAuth": r"ya29\.[A-Za-z0-9_-]{16,}",
    "of SendGrid": r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "of Docker": r"dckr_pat_[A-Za-z0-9_-]{8,}",
    "of npm": r"npm_[A-Za-z0-9]{30,}",
    "of PyPI": r"pypi-AgE[A-Za-z0-9_-]{8,}",
    "of Vault": r"hvs\.[A-Za-z0-9_-]{16,}",
    "as JSON (JWT)": r"eyJ[A-Za-z0-9_-]{8,}",
    "or key as PEM": r"-----BEGIN",
}
"""Whose token it is, as it stands in an error -> what its issuer lets each begin with."""

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:" + "|".join(f"({form})" for form in TOKENS.values()) + ")"
)
TOKEN_PATTERN = r"(^|[^A-Za-z0-9])(" + "|".join(TOKENS.values()) + ")"
"""For editors, and for Prefect's server, which refuses parameters before it keeps them."""

ADDRESS = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30})://([^\s\"'<>|;]*)")
"""Scheme, and what follows it."""
_SCHEMELESS = re.compile(r"(?<![A-Za-z0-9+./-])//[^\s\"'<>|;/@:]+:([^\s\"'<>|;/@]+)@")
"""`//user:password@host`, which curl and others complete."""
_OF_SHELLS = ("ssh", "sftp", "scp", "rsync")
"""Schemes whose user is an account and no token: ssh://git@host."""

_HARMLESS = re.compile(
    r"|(env|block|file):[\w./-]+"
    r"|(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*(:?\?[^}]*|:?-)?\}|\$\([^()]*\)|`[^`]*`)+|%[A-Za-z_]\w*%"
    r"|\{+[^{}]*\}+|<[^<>]*>|\*+|\.+|x{3,}"
    r"|os\.(environ|getenv)\b.*|process\.env\b.*"
    r"|(\.{1,2}|~)?/[\w.-]+(/[\w.-]+)+|(\.{1,2}|~)/[\w.-]+"
    r"|[\w.-]+(/[\w.-]+)*\.(cfg|conf|crt|env|ini|json|key|pem|toml|txt|ya?ml)"
    r"|true|false|null|none|yes|no|on|off",
    re.IGNORECASE | re.DOTALL,
)
"""What stands for a value without being it: a reference, a placeholder, the path of a file."""


def text_fault(text: str) -> str | None:
    """Say what gives a text away as holding a secret, in words without it; None where nothing does.

    Found are tokens of known forms, and addresses with a password.
    """
    token = _TOKEN.search(text)
    if token is not None:
        whose = list(TOKENS)[next(at for at, found in enumerate(token.groups()) if found)]
        return f"holds a token {whose}"
    for scheme, rest in ADDRESS.findall(text):
        user = user_of(scheme, rest)
        if user is not None and not is_harmless(user.partition(":")[2]):
            return "holds an address with a password"
    if not all(is_harmless(password) for password in _SCHEMELESS.findall(text)):
        return "holds an address with a password"
    return None


def is_harmless(value: str) -> bool:
    """Tell whether a value only stands for a secret: `$TOKEN`, `env:TOKEN`, `<token>`, a path."""
    return _HARMLESS.fullmatch(value.strip("\"'\\ ")) is not None


def user_of(scheme: str, rest: str) -> str | None:
    """Return the user, with its password, of an address; None where it has none, or an account."""
    authority: str = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    return user if at and not (scheme.lower().endswith(_OF_SHELLS) and ":" not in user) else None

"""Deploy by a POST to a server: to no other than was named, and nothing secret in the open."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from requant.config.addresses import sent_openly
from requant.config.operations import PostAction
from requant.errors import TRANSIENT_STATUSES, ConfigError, ContractError, TransientError
from requant.redaction import Redact
from requant.serving.release import Release
from requant.wording import printable

if TYPE_CHECKING:
    import httpx

BODY_BYTES = 1 << 14
"""Read of an answer, whatever it holds besides."""

BODY_CHARACTERS = 500
"""Shown of the answer of a server that refuses."""


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    """The first bytes of what the server said."""
    is_whole: bool
    location: str


def post_release(
    action: PostAction, release: Release, url: str, token: str | None, redact: Redact
) -> str:
    """Send the release as JSON to a server.

    Args:
        action: How.
        release: What.
        url: Where; `requant.serving.deploy.check_secret` has checked it if it is a secret.
        token: Sent as a bearer token.
        redact: Hides both, where they are secret, before the server's words are cut.

    Returns:
        The server's status.

    Raises:
        ConfigError: If the token cannot stand in a header, or would be read on its way.
        ContractError: If the server refuses, or sends on to another address.
        TransientError: If it does not answer within `action.seconds`, or may do better later.
    """
    import httpx

    # An address that is a secret is told by the name of the secret.
    field = f"deploy.action.url: {action.url}"
    headers = {"Accept-Encoding": "identity"}
    if token is not None:
        if sent_openly(url):
            raise ConfigError(f"{field}: http:// with a token; give https://")
        headers["Authorization"] = f"Bearer {_header_word(action, token)}"
    try:
        # Within a loop of its own: a server that sends a byte now and then keeps every other limit.
        with ThreadPoolExecutor(max_workers=1) as alone:
            call = _posted(url, asdict(release), headers, action.seconds)
            answer = alone.submit(asyncio.run, call).result()
    except TimeoutError:
        raise TransientError(f"{field} does not answer within {action.seconds:g} s") from None
    except httpx.RequestError as error:
        # Its text may hold the header.
        raise TransientError(f"{field} does not answer ({type(error).__name__})") from None
    except httpx.InvalidURL:
        raise ConfigError(f"{field}: has no host that a name server could know") from None
    if 200 <= answer.status < 300:
        return f"{action.url} answered {answer.status}"
    if 300 <= answer.status < 400:
        target = printable(redact(_bare(urljoin(url, answer.location))))
        raise ContractError(
            f"{field} answered {answer.status} and sends on to {target}; nothing was sent there: "
            "give the address of who takes the release itself"
        )
    kind = TransientError if answer.status in TRANSIENT_STATUSES else ContractError
    raise kind(f"{field} answered {answer.status}: {_beginning_of(answer, redact)}")


def _header_word(action: PostAction, token: str) -> str:
    word = token.strip()
    if not all("!" <= letter <= "~" for letter in word):
        raise ConfigError(
            f"deploy.action.token: {action.token} holds blanks or letters that no header takes; "
            "give a token of one word"
        )
    return word


async def _posted(
    url: str, content: Mapping[str, object], headers: Mapping[str, str], seconds: float
) -> _Answer:
    import httpx

    # Proxies of the environment are for what leaves the machine, through TLS.
    proxies = url.startswith("https://")
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(follow_redirects=False, timeout=seconds, trust_env=proxies) as client,
        client.stream("POST", url, json=content, headers=headers) as response,
    ):
        body, is_whole = await _beginning(response)
        location = response.headers.get("location", "")
        return _Answer(response.status_code, body, is_whole, location)


async def _beginning(response: "httpx.Response") -> tuple[bytes, bool]:
    """Read the beginning of an answer as it was sent: what was packed could have any size."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return b"(packed)", True
    body = b""
    async for chunk in response.aiter_raw(BODY_BYTES):
        body += chunk
        if len(body) > BODY_BYTES:
            return body[:BODY_BYTES], False
    return body, True


def _bare(address: str) -> str:
    """Return an address without user, query and fragment."""
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{host}{parts.path}"


def _beginning_of(answer: _Answer, redact: Redact) -> str:
    text = redact(answer.body.decode(errors="replace"), cut_after=not answer.is_whole).strip()
    line = printable(" ".join(text.split()))
    over = len(line) - BODY_CHARACTERS
    if over <= 0 and answer.is_whole:
        return line or "it said nothing"
    return f"{line[:BODY_CHARACTERS]} ... (more is left out)"

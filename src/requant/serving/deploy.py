"""Bring a verified model to where it serves: load it cold, let it answer, then act."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from requant.config.operations import CommandAction, CopyAction, PostAction
from requant.errors import ContractError, TransientError
from requant.store import ArtifactRef, Store, describe, locked, materialise, verify

TAIL_CHARACTERS = 2000
CURRENT = "current"
LOCK = ".deploy.lock"
"""In the folder that models are copied to."""

Secret = Callable[[str], str]
"""Reference (`env:NAME`, `block:NAME`) to its value."""


@dataclass(frozen=True)
class Release:
    """A version that is to serve."""

    model: str
    version: int
    digest: str
    uri: str
    scores: Mapping[str, float]


def check_release(store: Store, ref: ArtifactRef, prompt: str, tokens: int, device: str) -> str:
    """Verify every byte of a model, load it from its files and let it answer.

    Args:
        store: Where the model lies.
        ref: The model.
        prompt: What a user says, put through the chat template where there is one.
        tokens: At most so many are generated, greedily.
        device: cpu or cuda.

    Returns:
        The answer.

    Raises:
        ArtifactError: If a byte is wrong.
        ContractError: If the model gives no token or a logit that is not finite.
    """
    verify(store, ref)
    return answer(materialise(store, ref.digest), prompt, tokens, device)


def answer(folder: Path, prompt: str, tokens: int, device: str) -> str:
    """Let the model of a folder answer; see `check_release`.

    Raises:
        ContractError: If the model gives no token or a logit that is not finite.
    """
    import torch

    from requant.models.load import load_model
    from requant.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, device)
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    else:
        text = prompt
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.no_grad():
        if not model(**inputs).logits.isfinite().all():
            raise ContractError(f"deploy: the logits of {folder.name[:12]} are not finite")
        generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = generated[0, inputs["input_ids"].shape[1] :]
    if not len(new):
        raise ContractError(f"deploy: {folder.name[:12]} generates nothing after {prompt!r}")
    return str(tokenizer.decode(new, skip_special_tokens=True))


def act(
    action: CopyAction | CommandAction | PostAction | None,
    release: Release,
    folder: Path,
    secret: Secret,
) -> str:
    """Do what the configuration says with a model that was checked; return what was done."""
    match action:
        case None:
            return "was checked; deploy.action is null"
        case CopyAction():
            return copy_release(action, release, folder)
        case CommandAction():
            return command_release(action, release, folder, secret)
        case PostAction():
            return post_release(action, release, secret)


def still_there(action: CopyAction | CommandAction | PostAction | None, release: Release) -> bool:
    """Tell whether what was deployed is where it was put; what others did with it nobody can."""
    if not isinstance(action, CopyAction):
        return True
    current = (action.folder / CURRENT).resolve()
    return current.name == release.digest and _is_whole(current, release.digest)


def copy_release(action: CopyAction, release: Release, folder: Path) -> str:
    """Copy a model below `action.folder` and point `current` at it in one atomic step.

    Returns:
        What was done.

    Raises:
        ContractError: If the folder cannot be made or written to.
        TransientError: If the bytes that arrived are not those that were sent.
    """
    target = action.folder.resolve() / release.digest
    try:
        # Several model lines and state folders may deploy to one folder.
        with locked(target.with_name(LOCK), what=f"deploying {release.model}"):
            if not _is_whole(target, release.digest):
                _copy_whole(folder, target, release.digest)
            link = target.with_name(f".{CURRENT}.{uuid.uuid4().hex}")
            link.symlink_to(release.digest)
            link.replace(target.with_name(CURRENT))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ContractError(
            f"deploy.action.folder: {action.folder} cannot be made or written to "
            f"({error.strerror}: {error.filename}); give a folder that can be written to"
        ) from error
    return f"copied to {target}, {target.with_name(CURRENT)} points at it"


def _is_whole(folder: Path, digest: str) -> bool:
    return folder.is_dir() and describe(folder).digest == digest


def _copy_whole(folder: Path, target: Path, digest: str) -> None:
    # Of one name, so that what a kill left is the next one's to take away.
    draft = target.with_name(f".{digest}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _copy_contents(folder, draft)
        if describe(draft).digest != digest:
            raise TransientError(f"deploy: the copy in {target.parent} differs from {folder}")
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_contents(folder: Path, draft: Path) -> None:
    """Copy a folder without its modes and ACLs: who serves may be another user than who trained."""
    draft.mkdir()
    for path in folder.iterdir():
        if path.is_dir():
            _copy_contents(path, draft / path.name)
        else:
            shutil.copyfile(path, draft / path.name)


def command_release(action: CommandAction, release: Release, folder: Path, secret: Secret) -> str:
    """Run a command that finds the model in its environment; no shell reads anything.

    Returns:
        The end of its output, without the secrets.

    Raises:
        TransientError: If it fails or takes longer than `action.seconds`.
    """
    secrets = {name: secret(reference) for name, reference in action.secrets.items()}
    environment = {
        **os.environ,
        **secrets,
        "REQUANT_MODEL": release.model,
        "REQUANT_VERSION": str(release.version),
        "REQUANT_DIGEST": release.digest,
        "REQUANT_FOLDER": str(folder),
    }
    try:
        done = subprocess.run(
            action.argv,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=action.seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise ContractError(
            f"deploy.action.argv: {action.argv[0]!r} is no program; give one that exists"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TransientError(
            f"deploy.action.argv: {action.argv[0]!r} took longer than {action.seconds:g} s"
        ) from error
    said = redacted(done.stdout + done.stderr, secrets.values())[-TAIL_CHARACTERS:]
    if done.returncode:
        raise TransientError(
            f"deploy.action.argv: {action.argv[0]!r} ended with status {done.returncode}:\n{said}"
        )
    return f"{action.argv[0]} ended well: {said.strip() or 'it said nothing'}"


def post_release(action: PostAction, release: Release, secret: Secret) -> str:
    """Send the release as JSON to a server.

    Returns:
        The server's status.

    Raises:
        httpx.HTTPStatusError: If the server refuses; `is_transient` knows which may pass.
        TransientError: If it does not answer.
    """
    import httpx

    # A header takes no line break, and an error would show what it did not take.
    headers = {"Authorization": f"Bearer {secret(action.token).strip()}"} if action.token else {}
    try:
        response = httpx.post(
            action.url, json=asdict(release), headers=headers, timeout=action.seconds
        )
    except httpx.TransportError as error:
        # Its text may hold the header.
        name = type(error).__name__
        raise TransientError(f"deploy.action.url: {action.url} does not answer ({name})") from None
    response.raise_for_status()
    return f"{action.url} answered {response.status_code}"


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Replace secrets in a text."""
    # One may be the beginning of another.
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    return text

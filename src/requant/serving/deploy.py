"""Bring a verified model to where it serves: load it cold, let it answer, then act."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import SecretStr

from requant.config.addresses import http_fault, sent_openly
from requant.config.operations import CommandAction, CopyAction, PostAction, is_reference
from requant.credentials import secret_parts
from requant.errors import ConfigError, ContractError, TransientError
from requant.machine.withheld import withheld
from requant.outside.tokenizer_patterns import naming_patterns
from requant.redaction import redactor
from requant.serving.post import post_release
from requant.serving.program import run_command
from requant.serving.release import Release
from requant.store import ArtifactRef, Store, describe, locked, materialise, verify_to_serve
from requant.store.room import naming_full_disk

CURRENT = "current"
LOCK = ".deploy.lock"
"""In the folder that models are copied to."""

Action = CopyAction | CommandAction | PostAction | None
Secret = Callable[[str], SecretStr]
"""Reference (`env:NAME`, `block:NAME`) to its value."""


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
    verify_to_serve(store, ref)
    return answer(materialise(store, ref.digest), prompt, tokens, device)


def answer(folder: Path, prompt: str, tokens: int, device: str) -> str:
    """Let the model of a folder answer; see `check_release`.

    Raises:
        ContractError: If the model gives no token or a logit that is not finite.
    """
    import torch

    from requant.models.load import corrected, load_model
    from requant.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    model = corrected(load_model(folder, device), folder)
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    else:
        text = prompt
    with naming_patterns(tokenizer, "deploy.smoke_prompt"):
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.no_grad():
        if not model(**inputs).logits.isfinite().all():
            raise ContractError(f"deploy: the logits of {folder.name[:12]} are not finite")
        generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = generated[0, inputs["input_ids"].shape[1] :]
    if not len(new):
        raise ContractError(f"deploy: {folder.name[:12]} generates nothing after {prompt!r}")
    return str(tokenizer.decode(new, skip_special_tokens=True))


def needed_secrets(action: Action) -> dict[str, str]:
    """Return the references of the secrets an action needs, by field or environment variable."""
    match action:
        case CommandAction():
            return dict(action.secrets)
        case PostAction():
            fields = {"token": action.token, "url": action.url if is_reference(action.url) else ""}
            return {name: reference for name, reference in fields.items() if reference}
    return {}


def check_secret(action: Action, name: str, value: str) -> None:
    """Refuse a secret that cannot be what its field needs.

    Args:
        action: That needs it.
        name: Field or environment variable, as `needed_secrets` names it.
        value: Of the secret.

    Raises:
        ConfigError: Naming field and reference, never the value.
    """
    if not isinstance(action, PostAction) or name != "url":
        return
    fault = http_fault(value.strip(), query=True)
    if fault is None and sent_openly(value.strip()):
        fault = (
            "is http:// to another machine, and whoever listens on the way would have the secret"
        )
    if fault is not None:
        raise ConfigError(
            f"deploy.action.url: what {action.url} holds {fault}; give https://HOST/PATH, with a "
            "query where the server wants one"
        )


def act(
    action: Action, release: Release, folder: Path, secret: Secret, known: Iterable[SecretStr] = ()
) -> str:
    """Do what the configuration says with a model that was checked; return what was done.

    No text that leaves this function holds a secret: not what it returns, not what it raises, and
    not what is logged meanwhile.

    Args:
        action: What to do.
        release: The model.
        folder: Its files.
        secret: Finds the secrets the action needs.
        known: Secrets of this process besides.

    Raises:
        ConfigError: If a secret is missing or cannot be used.
        ContractError: If it cannot work.
        TransientError: If it may work later.
    """
    secrets = {name: secret(reference) for name, reference in needed_secrets(action).items()}
    values = {name: value.get_secret_value() for name, value in secrets.items()}
    redact = redactor(
        part
        for value in (*secrets.values(), *known)
        for part in secret_parts(value.get_secret_value())
    )

    def do() -> str:
        match action:
            case None:
                return "was checked; deploy.action is null"
            case CopyAction():
                return copy_release(action, release, folder)
            case CommandAction():
                return run_command(action, release, folder, values, redact)
            case PostAction():
                if "url" in values:
                    check_secret(action, "url", values["url"])
                url = values.get("url", action.url).strip()
                return post_release(action, release, url, values.get("token"), redact)

    with withheld(redact):
        return redact(do())


def still_there(action: Action, release: Release) -> bool:
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
        DiskFullError: If the folder's disk is full.
        TransientError: If the bytes that arrived are not those that were sent.
    """
    target = action.folder.resolve() / release.digest
    try:
        # Several model lines and state folders may deploy to one folder.
        outcome = "what served before goes on serving"
        with (
            locked(target.with_name(LOCK), what=f"deploying {release.model}"),
            naming_full_disk("deploy.action.folder", target.parent, outcome),
        ):
            if not _is_whole(target, release.digest):
                _copy_whole(folder, target, release.digest)
            # Of one name, so that what a kill left is the next one's to take away.
            link = target.with_name(f".{CURRENT}.link")
            link.unlink(missing_ok=True)
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

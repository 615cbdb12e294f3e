"""The Hugging Face hub: resolve a revision to a commit and fetch it, with errors sorted."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from requant.errors import ConfigError, TransientError

RepoType = Literal["model", "dataset"]

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 20.0


def resolve_commit(repo: str, revision: str, repo_type: RepoType, field: str) -> str:
    """Return the 40-hex commit a branch or tag points to now.

    Offline (HF_HUB_OFFLINE), it is the commit the local cache knows for it.

    Args:
        repo: owner/name.
        revision: Branch, tag or commit.
        repo_type: model or dataset.
        field: The configuration's, for the error's text.

    Raises:
        ConfigError: If repository or revision do not exist, are gated, or offline not cached.
        TransientError: If the hub cannot be reached.
    """
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    with _sorted_errors(repo, revision, field):
        if is_offline_mode():
            # Nothing matches the pattern: this only reads the cache's refs.
            folder = _snapshot(repo, revision, repo_type, ["*.no-such-file"])
            return folder.name
        info = HfApi().repo_info(
            repo, revision=revision, repo_type=repo_type, timeout=TIMEOUT_SECONDS
        )
    return str(info.sha)


def fetch(
    repo: str,
    revision: str,
    repo_type: RepoType,
    field: str,
    allow: list[str] | None = None,
    ignore: list[str] | None = None,
) -> Path:
    """Download a repository at the commit `revision` resolves to; return its folder in the cache.

    Args:
        repo: owner/name.
        revision: Branch, tag or commit.
        repo_type: model or dataset.
        field: The configuration's, for the error's text.
        allow: Glob patterns of the files wanted; None: all.
        ignore: Glob patterns of files not wanted.

    Raises:
        ConfigError: As `resolve_commit`.
        TransientError: If the hub cannot be reached; what was fetched is kept for the retry.
    """
    commit = resolve_commit(repo, revision, repo_type, field)
    with _sorted_errors(repo, revision, field):
        return _snapshot(repo, commit, repo_type, allow, ignore)


def tensor_shapes(repo: str, revision: str, field: str) -> dict[str, tuple[int, ...]]:
    """Return tensor name to shape from the headers of a model's weights; no tensor is downloaded.

    Raises:
        ConfigError: As `resolve_commit`, or if the repository holds no *.safetensors.
        TransientError: If the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    with _sorted_errors(repo, revision, field):
        try:
            found = HfApi().get_safetensors_metadata(repo, revision=revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise ConfigError(
                f"{field}.repo: {repo} holds no weights in *.safetensors that can be read "
                f"({error}); give a repository that does"
            ) from error
    return {
        name: tuple(tensor.shape)
        for file in found.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _snapshot(
    repo: str,
    revision: str,
    repo_type: RepoType,
    allow: list[str] | None,
    ignore: list[str] | None = None,
) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo,
            revision=revision,
            repo_type=repo_type,
            allow_patterns=allow,
            ignore_patterns=ignore,
        )
    )


@contextmanager
def _sorted_errors(repo: str, revision: str, field: str) -> Iterator[None]:
    from httpx import HTTPError
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{field}.revision: {revision!r} is no branch, tag or commit of {repo}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{field}.repo: {repo!r} is not on the Hugging Face hub, or is gated or private; check "
            "the spelling, or log in with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise ConfigError(f"{field}.repo: {repo!r}: {error}") from error
    except LocalEntryNotFoundError as error:
        if is_offline_mode():
            raise ConfigError(
                f"{field}.repo: {repo}@{revision} is not in the local Hugging Face cache and "
                "HF_HUB_OFFLINE is set; unset it, or fetch it first with `hf download`"
            ) from error
        raise TransientError(
            f"{field}.repo: the Hugging Face hub cannot be reached: {error}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status is None or status >= 500 or status in {408, 429}:
            raise TransientError(f"{field}.repo: the hub answered {status}: {error}") from error
        raise ConfigError(f"{field}.repo: {repo}: the hub answered {status}: {error}") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise TransientError(
            f"{field}.repo: the Hugging Face hub cannot be reached: {error}"
        ) from error

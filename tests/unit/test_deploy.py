"""A release reaches its place whole, or the old one goes on serving."""

import sys
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from requant.config.operations import CommandAction, CopyAction, PostAction
from requant.errors import ArtifactError, ContractError, TransientError
from requant.serving.deploy import LOCK, act, check_release, still_there
from requant.serving.program import TAIL_CHARACTERS
from requant.serving.release import Release
from requant.store import Store, locked, publish

HOSTILE = "tiny; touch $(hacked) `hacked` && hacked"


def release(store: Store, content: str) -> tuple[Release, Path]:
    draft = store.tmp / content
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_text(content)
    ref = publish(store, "model", draft)
    return Release("tiny", 1, ref.digest, ref.uri, {"acc": 0.5}), store.object_path(ref.digest)


def no_secret(reference: str) -> SecretStr:
    raise AssertionError(f"nobody needs {reference}")


def test_current_moves_in_one_step_and_back(store: Store, tmp_path: Path) -> None:
    action = CopyAction(kind="copy", folder=tmp_path / "served")
    current = tmp_path / "served" / "current" / "model.safetensors"
    releases = [release(store, word) for word in ("first", "second")]
    for item, folder in [*releases, releases[0], releases[0]]:
        assert "current points at it" in act(action, item, folder, no_secret)
        assert current.read_text() == (folder / "model.safetensors").read_text()
    names = {path.name for path in (tmp_path / "served").iterdir()}
    assert names == {"current", LOCK, *(item.digest for item, _ in releases)}


def test_a_model_that_was_altered_is_told_with_the_way_out(store: Store) -> None:
    item, folder = release(store, "first")
    (folder / "model.safetensors").write_text("other")
    with pytest.raises(
        ArtifactError,
        match=r"model.safetensors: was altered: .* Expected model \w{12} as it was made; what "
        "serves now goes on serving. `requant run` with .* makes a harmed file again, or let "
        "another version serve: `requant promote CONFIG --version N`",
    ):
        check_release(store, store.ref("model", item.digest), "Hello.", 1, "cpu")


def test_what_a_kill_left_before_the_step_is_taken_away(store: Store, tmp_path: Path) -> None:
    action = CopyAction(kind="copy", folder=tmp_path / "served")
    item, folder = release(store, "first")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / ".current.link").symlink_to("another")
    (tmp_path / "served" / f".{item.digest}.draft").mkdir()
    act(action, item, folder, no_secret)
    names = {path.name for path in (tmp_path / "served").iterdir()}
    assert names == {"current", LOCK, item.digest}


def test_a_place_that_is_a_file_is_named_by_its_field(store: Store, tmp_path: Path) -> None:
    (tmp_path / "served").write_text("a file")
    item, folder = release(store, "first")
    for place in ("served", "served/below"):
        action = CopyAction(kind="copy", folder=tmp_path / place)
        with pytest.raises(
            ContractError, match=rf"deploy.action.folder: .*/{place} cannot be made"
        ):
            act(action, item, folder, no_secret)


def test_another_user_may_read_what_serves(store: Store, tmp_path: Path) -> None:
    draft = store.tmp / "draft"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_text("weights")
    ref = publish(store, "model", draft)
    folder = store.object_path(ref.digest)
    assert (folder / "model.safetensors").stat().st_mode & 0o077 == 0
    plain = tmp_path / "plain"
    plain.touch()
    action = CopyAction(kind="copy", folder=tmp_path / "served")
    act(action, Release("tiny", 1, ref.digest, ref.uri, {}), folder, no_secret)
    served = tmp_path / "served" / "current" / "model.safetensors"
    assert served.stat().st_mode == plain.stat().st_mode


def test_a_harmed_copy_is_made_again(store: Store, tmp_path: Path) -> None:
    action = CopyAction(kind="copy", folder=tmp_path / "served")
    item, folder = release(store, "first")
    act(action, item, folder, no_secret)
    assert still_there(action, item)
    assert still_there(PostAction(kind="post", url="https://x"), item)
    other, _ = release(store, "second")
    assert not still_there(action, other)
    copy = tmp_path / "served" / item.digest / "model.safetensors"
    copy.write_text("harmed")
    assert not still_there(action, item)
    # As a kill during an earlier copy left it.
    (tmp_path / "served" / f".{item.digest}.draft").mkdir()
    act(action, item, folder, no_secret)
    assert copy.read_text() == "first"
    names = {path.name for path in (tmp_path / "served").iterdir()}
    assert names == {"current", LOCK, item.digest}


def test_two_lines_that_deploy_to_one_folder_take_turns(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    action = CopyAction(kind="copy", folder=served)
    item, folder = release(store, "first")
    # As the copy of another line looks half way.
    draft = served / f".{item.digest}.draft"
    draft.mkdir(parents=True)
    second = threading.Thread(target=act, args=(action, item, folder, no_secret))
    with locked(served / LOCK):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert draft.is_dir()
        assert not (served / "current").exists()
    second.join()
    assert (served / "current" / "model.safetensors").read_text() == "first"


def test_no_shell_reads_a_name(store: Store, tmp_path: Path) -> None:
    item, folder = release(store, "first")
    hostile = Release(HOSTILE, 1, item.digest, item.uri, {})
    code = "import os; print(os.environ['REQUANT_MODEL'], os.environ['REQUANT_FOLDER'])"
    action = CommandAction(kind="command", argv=(sys.executable, "-c", code, "$HOME"))
    assert f"{HOSTILE} {folder}" in act(action, hostile, folder, no_secret)
    assert not list(tmp_path.glob("**/*hacked*"))


def test_a_secret_in_the_output_is_not_repeated(store: Store) -> None:
    item, folder = release(store, "first")
    code = "import os, sys; print('token', os.environ['TOKEN']); sys.exit({status})"
    for status in (0, 3):
        argv = (sys.executable, "-c", code.format(status=status))
        action = CommandAction(kind="command", argv=argv, secrets={"TOKEN": "env:T"})
        if status:
            with pytest.raises(TransientError, match=r"status 3:\ntoken \*\*\*"):
                act(action, item, folder, lambda reference: SecretStr("s3cret-enough"))
        else:
            assert "token ***" in act(
                action, item, folder, lambda reference: SecretStr("s3cret-enough")
            )


@pytest.mark.parametrize(
    ("argv", "seconds", "kind", "text"),
    [
        (
            ("curl -H hunter2 https://x",),
            5.0,
            ContractError,
            r"^deploy.action.argv: its first item \(25 characters, 4 words\) is no program here "
            r"\(it is not shown: it may hold a secret\); give a program that exists, and each "
            r"argument as an item of its own$",
        ),
        (("sleep", "30"), 0.2, TransientError, "'sleep' took longer than 0.2 s and was ended with"),
    ],
)
def test_a_program_that_cannot_work_is_named(
    store: Store, argv: tuple[str, ...], seconds: float, kind: type[Exception], text: str
) -> None:
    item, folder = release(store, "first")
    action = CommandAction(kind="command", argv=argv, seconds=seconds)
    with pytest.raises(kind, match=text):
        act(action, item, folder, no_secret)


def test_a_server_that_is_away_is_worth_a_retry(store: Store) -> None:
    item, folder = release(store, "first")
    action = PostAction(kind="post", url="http://127.0.0.1:9/", seconds=2)
    with pytest.raises(TransientError, match=r"deploy.action.url: http://127.0.0.1:9/ does not"):
        act(action, item, folder, no_secret)


def test_a_program_gets_the_secrets_it_names_and_no_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-mlflow-alone")
    monkeypatch.setenv("HF_TOKEN", "of-the-hub-alone")
    monkeypatch.setenv("PLAIN", "of-anybody")
    item, folder = release(store, "first")
    names = {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PLAIN"}
    code = f"import os; print(sorted({names} & {{*os.environ}}))"
    argv = (sys.executable, "-c", code)
    action = CommandAction(kind="command", argv=argv, secrets={"HF_TOKEN": "env:HF_TOKEN"})
    said = act(action, item, folder, lambda reference: SecretStr("of-the-hub-alone"))
    assert "ended well: ['HF_TOKEN', 'PLAIN']" in said


def test_what_a_program_says_is_hidden_before_it_is_cut(store: Store) -> None:
    secret = "0123456789abcdef" * 4
    item, folder = release(store, "first")
    # One over the edge of what is shown, one over the edge of what is kept.
    code = (
        "import os, sys; token = os.environ['T']; "
        "print(token + 'x' * ({shown} - 32)) if {shown} else print((token + chr(10)) * 9000)"
    )
    for shown in (TAIL_CHARACTERS, 0):
        argv = (sys.executable, "-c", code.format(shown=shown))
        action = CommandAction(kind="command", argv=argv, secrets={"T": "env:T"})
        said = act(action, item, folder, lambda reference: SecretStr(secret))
        assert not any(secret[i : i + 4] in said for i in range(16))
        assert "***" in said
    assert "characters before this are left out" in said


def test_other_secrets_of_the_process_are_hidden_too(store: Store) -> None:
    item, folder = release(store, "first")
    action = CommandAction(kind="command", argv=("echo", "as of-mlflow-alone"))
    said = act(action, item, folder, no_secret, [SecretStr("me:of-mlflow-alone")])
    assert said == "echo ended well: as ***"

"""Whatever a person names passes the real validators of where it goes, and stays distinct."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param, _validate_tag

from requant.names import (
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    artifact_key,
    file_name,
    markdown,
    markdown_block,
    tracking_key,
    tracking_value,
)

NAMES = st.text(min_size=1, max_size=400)


@given(name=NAMES, value=st.text(max_size=9000))
@example(name="inputs.train[0]", value="x")
@example(name="../../etc/passwd", value="x")
@example(name="a//b/", value="x")
@example(name="/", value="\ud800")
def test_mlflow_takes_every_name_and_value(name: str, value: str) -> None:
    key = tracking_key(name)

    _validate_param(key, tracking_value(value))
    _validate_tag(key, tracking_value(value, TAG_CHARACTERS))
    _validate_metric_name(key)
    assert len(tracking_value(value)) <= PARAM_CHARACTERS


@given(name=NAMES)
@example(name="..")
@example(name=".hidden")
def test_a_file_name_is_one_part_of_a_path_and_a_prefect_key_has_prefects_letters(
    name: str,
) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", file_name(name))
    assert re.fullmatch(r"[a-z0-9-]{1,200}", artifact_key(name))


@pytest.mark.parametrize("safe", [tracking_key, file_name, artifact_key])
@given(first=NAMES, second=NAMES)
@example(first="a[0]", second="a_0_")
@example(first="x" * 300, second="x" * 301)
@example(first="tiny.1", second="tiny-1")
@example(first="A", second="a")
def test_two_names_never_become_one(safe, first: str, second: str) -> None:
    assert (safe(first) == safe(second)) == (first == second)


@pytest.mark.parametrize("name", ["prepare_data", "requantized/task.1/acc norm", "inputs.base"])
def test_a_name_that_is_fit_stays(name: str) -> None:
    assert tracking_key(name) == name


def test_what_is_cut_says_so() -> None:
    assert tracking_value("a\ud800\0") == r"a\ud800\x00"
    cut = tracking_value("x" * 7000)
    assert re.search(r"xxx… \(7000 characters in all, sha256 [0-9a-f]{12}\)$", cut)
    assert len(cut) == PARAM_CHARACTERS


def test_markdown_shows_a_text_as_it_is() -> None:
    assert markdown("a|b\n[x](y) `z` <b> *c* _d_ merge_fp16") == (
        r"a\|b \[x\](y) \`z\` \<b\> \*c\* \_d\_ merge_fp16"
    )
    assert markdown_block("a\n```\n- b: c_d") == "> a  \n> \\`\\`\\`  \n> \\- b: c_d  "

"""Bases that the tests of a merge share."""

from pathlib import Path

import pytest

from tests.support.adapters import gpt2, qwen, save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 with biases, in shards; an output layer of its own."""
    folder = tmp_path_factory.mktemp("qwen")
    return save_model(qwen(attention_bias=True), folder, max_shard_size="60KB")


@pytest.fixture(scope="module")
def transposed_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(gpt2(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(qwen(tie_word_embeddings=True), tmp_path_factory.mktemp("tied"))

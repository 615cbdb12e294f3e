"""Can the base write rows itself? Its tokenizer and chat template tell before the night."""

from collections.abc import Iterator

from requant.config import Config
from requant.data.chat_template import dialect
from requant.data.written import RULES, beginning
from requant.errors import ContractError
from requant.machine.looking import Watch, unwatched
from requant.models.tokenizer import load_tokenizer
from requant.preflight.base import FIELD, LOADING_SECONDS, opened_base
from requant.preflight.problem import Problem


def written_problems(config: Config, watch: Watch = unwatched) -> Iterator[Problem]:
    """Say why there is no place where the base would begin to write."""
    if not config.runs("write_replay"):
        return
    with opened_base(config) as folder:
        if folder is not None:
            watch(f"{FIELD}: {folder}: where it begins to write", LOADING_SECONDS)
            try:
                beginning(dialect(load_tokenizer(folder), RULES))
            except ContractError as error:
                yield Problem("", str(error))

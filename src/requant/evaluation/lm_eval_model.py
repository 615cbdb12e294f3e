"""lm-eval's own model class, made to say how far it is and nothing else."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from requant.evaluation.answers import Answer

Tell = Callable[[int, int], None]
"""(requests done, requests in all)"""


def watched_model(**arguments: Any) -> Any:
    """Make lm-eval's model for transformers; it tells how many requests are done, and what was cut.

    Its `answers(kind, requests, tell)` returns an `Answer` a request. lm-eval takes tokens from the
    beginning of prompts of requests that exceed the model's positions; where the answer alone does
    it ends with an AssertionError, and here the answer's end is left out.

    A request is a continuation, a text to generate, or a window of a text whose perplexity is
    measured. lm-eval has bars for this, but no other way to hear of it; and its bar for
    perplexities begins anew with every batch.

    Args:
        **arguments: Of `lm_eval.models.huggingface.HFLM`.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    class Watched(HFLM):  # type: ignore[misc]
        """Counts what goes through the model."""

        def answers(self, kind: str, requests: Any, tell: Tell) -> list[Answer]:
            """Answer requests of one kind; `tell` hears it after every forward pass."""
            self._tell, self._done = tell, 0
            self._cuts: list[tuple[bool, bool]] = []
            self._total = self._passes(kind, requests)
            found = getattr(self, kind)(requests, disable_tqdm=True)
            # Continuations of one token after the same context share a pass.
            self._count(self._total - self._done)
            if kind == "loglikelihood":
                cut = zip(found, self._cuts, strict=True)
                return [Answer(value, bool(greedy), None, *cuts) for (value, greedy), cuts in cut]
            if kind == "loglikelihood_rolling":
                return [Answer(value) for value in found]
            return [
                Answer(text=text, cut_prompt=self._leaves_too_little(*request.args))
                for text, request in zip(found, requests, strict=True)
            ]

        def _passes(self, kind: str, requests: Any) -> int:
            if kind != "loglikelihood_rolling":
                return len(requests)
            lengths = [len(self.tok_encode(request.args[0])) for request in requests]
            return sum(-(-length // self.max_length) for length in lengths)

        def _leaves_too_little(self, prompt: str, how: dict[str, Any]) -> bool:
            room = int(normalize_gen_kwargs(how, self.max_gen_toks)["max_gen_toks"])
            return len(self.tok_encode(prompt)) > int(self.max_length) - room

        def _loglikelihood_tokens(self, requests: Any, *more: Any, **named: Any) -> Any:
            fitting = []
            for request, context, answer in requests:
                too_long = len(context) + len(answer) > self.max_length + 1
                self._cuts.append((too_long, len(answer) > self.max_length))
                fitting.append((request, context, answer[: self.max_length]))
            return super()._loglikelihood_tokens(fitting, *more, **named)

        def _model_call(self, inps: Any, *more: Any, **named: Any) -> Any:
            result = super()._model_call(inps, *more, **named)
            self._count(len(inps))
            return result

        def _model_generate(self, context: Any, *more: Any, **named: Any) -> Any:
            result = super()._model_generate(context, *more, **named)
            self._count(len(context))
            return result

        def _count(self, more: int) -> None:
            self._done = min(self._done + more, self._total)
            self._tell(self._done, self._total)

    return Watched(**arguments)


@contextmanager
def without_environment() -> Iterator[None]:
    """Keep lm-eval from asking git and pip about this machine, for a result nobody reads.

    git says "fatal: not a git repository" where there is none, and the packages take seconds.
    """
    from lm_eval import evaluator

    names = ("get_git_commit_hash", "add_env_info")
    before = {name: getattr(evaluator, name) for name in names}
    for name in names:
        setattr(evaluator, name, lambda *results: None)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(evaluator, name, function)


@contextmanager
def infinite_perplexities() -> Iterator[None]:
    """Let lm-eval's perplexities be infinite, where Python's exp raises OverflowError.

    The perplexity of a word of 500 characters without a space is above 1e308 for any model; its
    log-likelihood is an ordinary number.
    """
    from lm_eval.api import metrics

    def exp(value: float) -> float:
        try:
            return math.exp(value)
        except OverflowError:
            return math.inf

    before = metrics.math
    metrics.math = SimpleNamespace(**{**vars(math), "exp": exp})
    try:
        yield
    finally:
        metrics.math = before

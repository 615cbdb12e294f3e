"""lm-eval's own model class, made to say how far it is and nothing else."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

Tell = Callable[[int, int], None]
"""(requests done, requests in all)"""


def watched_model(tell: Tell, **arguments: Any) -> Any:
    """Make lm-eval's model for transformers; it tells how many requests are done.

    Its `too_long` counts the requests that exceed the model's positions: lm-eval takes tokens from
    the beginning of their prompts. Its `cut_answers` counts those whose answer alone does, which
    lm-eval ends with an AssertionError; here the answer's end is left out.

    A request is a continuation, a text to generate, or a window of a text whose perplexity is
    measured. lm-eval has bars for this, but no other way to hear of it; and its bar for
    perplexities begins anew with every batch.

    Args:
        tell: Hears it after every forward pass.
        **arguments: Of `lm_eval.models.huggingface.HFLM`.
    """
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):  # type: ignore[misc]
        """Counts what goes through the model."""

        too_long = cut_answers = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._counted(len(requests)):
                return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            lengths = [len(self.tok_encode(request.args[0])) for request in requests]
            windows = sum(-(-length // self.max_length) for length in lengths)
            with self._counted(windows):
                return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._counted(len(requests)):
                return super().generate_until(requests, disable_tqdm)

        def _loglikelihood_tokens(self, requests: Any, *more: Any, **named: Any) -> Any:
            fitting = []
            for request, context, answer in requests:
                self.too_long += len(context) + len(answer) > self.max_length + 1
                self.cut_answers += len(answer) > self.max_length
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

        @contextmanager
        def _counted(self, total: int) -> Iterator[None]:
            self._done, self._total = 0, total
            yield
            # Continuations of one token after the same context share a pass.
            self._count(total - self._done)

        def _count(self, more: int) -> None:
            self._done = min(self._done + more, self._total)
            tell(self._done, self._total)

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

"""lm-eval's own model class, made to say how far it is and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[int, int], None]
"""(requests done, requests in all)"""


def watched_model(tell: Tell, **arguments: Any) -> Any:
    """Make lm-eval's model for transformers; it tells how many requests are done.

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

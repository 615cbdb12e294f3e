"""A model that is loaded when it is asked something it has not answered before."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from requant.evaluation.answers import Answer, Answers, request_digest
from requant.evaluation.lm_eval_model import Tell

PROBE = "The answer begins here"
"""Text that no template has of itself."""


def answering_model(tokenizer: Any, known: Mapping[str, Answer], opened: Callable[[], Any]) -> Any:
    """Make a model for lm-eval of what is known of one, and the one itself for the rest.

    Args:
        tokenizer: Of the model; prompts go through its chat template.
        known: What it has answered.
        opened: Loads it, as `requant.evaluation.lm_eval_model.watched_model`.

    Returns:
        With `learnt` (its new answers), `asked` and `asked_before` (requests), `cut_prompts` and
        `cut_answers` (of them), `tell` and `as_trained` (to be set: whether prompts end where
        training has the answer begin), and `close()`, which gives the memory back.
    """
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM

    class Answering(LM):  # type: ignore[misc]
        """Asks the model what is not known."""

        # What lm-eval renders prompts with needs the tokenizer alone.
        chat_template = HFLM.chat_template
        tokenizer_name = HFLM.tokenizer_name
        chat_template_args: Mapping[str, Any] = {}

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.learnt: Answers = {}
            self.asked = self.asked_before = self.cut_prompts = self.cut_answers = 0
            self.tell: Tell = lambda done, total: None
            self.as_trained = False
            self._model: Any = None

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            prompt = str(HFLM.apply_chat_template(self, history, add_generation_prompt))
            return prompt + (lead_in(tokenizer, history, prompt) if self.as_trained else "")

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            found = self._answers("loglikelihood", requests)
            return [(answer.value, answer.greedy) for answer in found]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return [answer.value for answer in self._answers("loglikelihood_rolling", requests)]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return [answer.text for answer in self._answers("generate_until", requests)]

        def close(self) -> None:
            from requant.models.device import clear_memory

            if self._model is not None:
                self._model = None
                clear_memory()

        def _answers(self, kind: str, requests: Any) -> list[Answer]:
            keys = _keys(kind, requests)
            new = {
                key: request
                for key, request in zip(keys, requests, strict=True)
                if key not in known and key not in self.learnt
            }
            self.asked += len(keys)
            self.asked_before += sum(key not in new for key in keys)
            if new:
                self._model = self._model or opened()
                answers = self._model.answers(kind, list(new.values()), self.tell)
                self.learnt |= zip(new, answers, strict=True)
            found = [self.learnt.get(key) or known[key] for key in keys]
            self.cut_prompts += sum(answer.cut_prompt for answer in found)
            self.cut_answers += sum(answer.cut_answer for answer in found)
            return found

    return Answering()


def lead_in(tokenizer: Any, history: Sequence[Mapping[str, str]], prompt: str) -> str:
    """Return what a chat template puts between the generation prompt and an answer.

    Qwen3's has empty thoughts there, gpt-oss's the name of a channel: training sees them before
    each answer, so an answer right after the prompt would be another text than was trained.

    Args:
        tokenizer: With the template.
        history: Messages before the answer.
        prompt: They and the generation prompt, rendered.
    """
    answered = [*history, {"role": "assistant", "content": PROBE}]
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    between, found, _ = whole.removeprefix(prompt).partition(PROBE)
    return between if found and whole.startswith(prompt) else ""


def _keys(kind: str, requests: Any) -> list[str]:
    """Name requests; a text that is to be generated several times is several requests."""
    turns: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = request_digest(kind, request.args)
        if kind == "generate_until" and turns[key]:
            keys.append(request_digest(kind, request.args, turns[key]))
        else:
            keys.append(key)
        turns[key] += 1
    return keys

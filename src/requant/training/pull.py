"""A pull towards what a training starts from: a second term of its loss.

    kl:  loss + weight * mean over the assistant's tokens of KL(start || now), nats a token
    l2:  loss + weight * sum over adapted layers of ||s B A - s B0 A0||_F^2

The start is the model as the training found it: the base with all adapters below a new one, or with
the parent's adapter where that is trained on; of a prompt, the base without it. A training that was
killed is pulled towards the same start when it goes on, and not towards its checkpoint.

kl is Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282) at temperature 1: what the
model said before is kept on the new text. It needs no second model: the start differs from the
model in its adapter alone, so the same layers are run a second time with the adapter's first
weights in the place of the trained ones. l2 is L2-SP (Li et al. 2018, arXiv:1802.01483) on the
update in place of its factors: B A is what acts, and many pairs of factors have the same product.
Distance from the factors would hold a new adapter near the random numbers that A begins with.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from requant.config.training import Pull
from requant.data.turns import IGNORED
from requant.training.pull_terms import first_updates, head_of, update_distance

if TYPE_CHECKING:
    import torch


def curve(pull: Pull) -> str:
    """Name the curve of a pull: pull_kl, nats a token, or pull_l2, squared weights."""
    return f"pull_{pull.kind}"


def trainer_with_pull(pull: Pull, model: Any) -> Any:
    """Make the subclass of trl's `SFTTrainer` that adds the second term and logs both apart.

    Call it before a trainer is made: `SFTTrainer` rounds the adapter of a quantized base to
    bfloat16, and the start is what was there before.

    Args:
        pull: Which term, and its weight.
        model: peft model as the training found it.

    Returns:
        The class. Its log holds `loss` without the second term, and the second term without its
        weight under `curve(pull)`; both are means over the labelled tokens of a step, however it
        is divided into batches and ranks.
    """
    import torch
    from trl import SFTTrainer

    backbone = model.get_base_model().base_model
    start = {
        name: parameter.detach().clone().float()
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }
    updates = first_updates(model) if pull.kind == "l2" else ()

    class Pulled(SFTTrainer):  # type: ignore[misc]
        """Adds the pull to the loss of a batch."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._sums = torch.zeros(2, device=self.args.device)

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            # With a count of the whole step's tokens a loss is a part of the step's; without one it
            # is the mean of a batch, which the Trainer divides by the batches of a step.
            whole = num_items_in_batch is not None
            share = 1 / self.current_gradient_accumulation_steps
            if pull.kind == "kl":
                loss, term = self._kl(model, inputs, num_items_in_batch)
            else:
                loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
                term = update_distance(updates) * (share if whole else 1)
            both = torch.stack([loss.detach(), term.detach()]).float()
            self._sums += both if whole else both * share
            return loss + pull.weight * term

        def _kl(self, model: Any, inputs: dict[str, Any], count: Any) -> tuple[Any, Any]:
            chosen = inputs["labels"][:, 1:] != IGNORED
            with self.accelerator.autocast():
                reference = at_start(backbone, start, inputs)[:, :-1][chosen]
            with last_states(backbone) as seen:
                loss = super().compute_loss(model, inputs, num_items_in_batch=count)
            # A prompt's own positions stand in front of the text's.
            states = seen[-1][:, -chosen.shape[1] - 1 : -1][chosen]
            head = head_of(self.model.get_base_model())
            tokens = torch.as_tensor(chosen.sum() if count is None else count).clamp(min=1)
            term = head.divergences(reference, states).sum() / tokens
            # As trl does with the loss: of several ranks each counts the tokens of all, and the
            # mean of their gradients is taken.
            return loss, term if count is None else term * self.accelerator.num_processes

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                sums = self.accelerator.gather(self._sums[None])
                logs["loss"], logs[curve(pull)] = sums.mean(0).tolist()
                self._sums.zero_()
            super().log(logs, start_time)

    return Pulled


def at_start(
    backbone: Any, start: Mapping[str, "torch.Tensor"], inputs: Mapping[str, Any]
) -> "torch.Tensor":
    """Run a model with its first weights in the place of those that are trained.

    Without gradients and dropout, so that it draws no random number and two calls are equal.

    Args:
        backbone: Model without its head.
        start: Name of each parameter that is trained to its value when the training began, float32.
        inputs: input_ids and attention_mask, int64 [batch, length]; labels are left out.

    Returns:
        Last hidden states [batch, length, channels].
    """
    import torch
    from torch.func import functional_call

    given = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad(), without_dropout(backbone):
        output = functional_call(backbone, dict(start), kwargs={**given, "use_cache": False})
    states: torch.Tensor = output.last_hidden_state
    return states


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Put into evaluation mode whatever draws random numbers, and leave quantized layers alone.

    Those lay their weights out anew for inference when their mode changes, which costs seconds, and
    with some kernels the gradients of the training.
    """
    from torch.nn.modules.dropout import _DropoutNd

    changed = [
        module
        for module in model.modules()
        if module.training and (isinstance(module, _DropoutNd) or any(module.children()))
    ]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True


@contextmanager
def last_states(backbone: Any) -> Iterator[list["torch.Tensor"]]:
    """Keep the last hidden states of each forward pass, with their gradients' graph."""
    seen: list[torch.Tensor] = []
    handle = backbone.register_forward_hook(
        lambda module, given, output: seen.append(output.last_hidden_state)
    )
    try:
        yield seen
    finally:
        handle.remove()

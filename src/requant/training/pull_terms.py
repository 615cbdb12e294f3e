"""The two distances of a model from its start: in what it says, and in its weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TRAINED = "default"
"""peft's name of the adapter that is trained."""


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states: softcap * tanh(scale * (W h + b) / softcap)."""

    weight: "torch.Tensor"
    """[vocabulary, channels]."""
    bias: "torch.Tensor | None"
    """[vocabulary]."""
    scale: float = 1.0
    softcap: float | None = None

    def divergences(self, reference: "torch.Tensor", states: "torch.Tensor") -> "torch.Tensor":
        """Compute KL(reference || states) of each token, in float32 and block by block.

        KL(p || q) = sum_v p(v) (log p(v) - log q(v)); no logits of a whole batch are in memory.

        Args:
            reference: Hidden states [tokens, channels]; gets no gradient.
            states: Likewise, of the model that is trained.

        Returns:
            float32 [tokens], nats; below zero by no more than rounding.
        """
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        head = self.weight, self.bias
        forward_kl, temperature = 0.0, 1.0
        transform = self.scale, self.softcap
        found: torch.Tensor = ChunkedDivergenceFunction.apply(
            states, *head, reference, *head, forward_kl, temperature, *transform, *transform
        )[0]
        return found


def head_of(model: Any) -> Head:
    """Read the head of a causal language model, scaled and capped as its own forward does.

    Families name the scale apart: the names are those that trl 1.16 knows for the loss itself.
    """
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = getattr(config, name)
            break
    else:
        divisor = getattr(config, "logits_scaling", None)
        if divisor is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    layer = model.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, scale, softcap)


@dataclass(frozen=True)
class Update:
    """One adapted layer, and its factors when the training began."""

    layer: Any
    """peft's LoRA layer, whose factors are trained in place."""
    down: "torch.Tensor"
    """A0, float32 [rank, in]."""
    up: "torch.Tensor"
    """B0, float32 [out, rank]."""
    magnitude: "torch.Tensor | None"
    """m0 of DoRA, float32 [out]."""


def first_updates(model: Any) -> tuple[Update, ...]:
    """Copy the factors of the adapter that is trained, as the training found them."""
    from peft.tuners.lora import LoraLayer

    def copy(tensor: Any) -> "torch.Tensor":
        copied: torch.Tensor = tensor.detach().clone().float()
        return copied

    found = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and TRAINED in module.scaling:
            down, up = _factors(module)
            magnitude = _magnitude(module)
            found.append(
                Update(module, copy(down), copy(up), None if magnitude is None else copy(magnitude))
            )
    return tuple(found)


def update_distance(updates: tuple[Update, ...]) -> "torch.Tensor":
    """Compute the sum over layers of ||s B A - s B0 A0||_F^2, and of ||m - m0||^2 where DoRA has m.

    B A - B0 A0 = [B - B0, B0] [A; A - A0] = P Q, and ||P Q||_F^2 = sum((P^T P) * (Q Q^T)): of
    matrices [2 rank, 2 rank] alone, and exactly zero at the start.

    Returns:
        float32 scalar, in squared units of weights.
    """
    import torch

    parts = []
    for update in updates:
        down, up = _factors(update.layer)
        left = torch.cat([up - update.up, update.up], 1)
        right = torch.cat([down, down - update.down], 0)
        product = ((left.T @ left) * (right @ right.T)).sum()
        parts.append(product * update.layer.scaling[TRAINED] ** 2)
        if update.magnitude is not None:
            parts.append((_magnitude(update.layer) - update.magnitude).square().sum())
    return torch.stack(parts).sum()


def _factors(layer: Any) -> tuple[Any, Any]:
    """Return A [rank, in] and B [out, rank] of a layer; an embedding has them under other names."""
    if TRAINED in layer.lora_A:
        return layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
    return layer.lora_embedding_A[TRAINED], layer.lora_embedding_B[TRAINED]


def _magnitude(layer: Any) -> Any:
    vectors = layer.lora_magnitude_vector
    return vectors[TRAINED].weight if TRAINED in vectors else None

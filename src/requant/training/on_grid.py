"""Linear layers that train ternary updates of GPTQ codes, and compute what will be shipped.

The forward pass multiplies with the dequantized codes after their steps, by the arithmetic of the
layer it takes the place of: what is trained is what is shipped, to the bit. The backward pass takes
threshold and clamping for the identity (straight-through): with G = dL/dW' and scales s,

    dL/dA = (s G) B^T        dL/dB = A^T (s G)

A and B are held as latent floats, of which sign(x) [|x| >= 1/2] counts.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from requant.quantization.dequantize import QuantizedFolder
from requant.quantization.gptq_layout import read_parts, stored_below, unpacked
from requant.quantization.grid_moves import Moves, packed_updates
from requant.quantization.kernel_check import quantized_layers
from requant.quantization.ternary import moved, steps_of

if TYPE_CHECKING:
    import torch

COUNTS = 0.5
"""Size from which a latent number is -1 or 1."""
SPREAD = 0.49
"""Size up to which the numbers of B are drawn."""


def ternary(latent: "torch.Tensor") -> "torch.Tensor":
    """Return -1, 0 and 1 of latent floats, in their dtype."""
    return latent.sign() * (latent.abs() >= COUNTS)


def put_on_grid(
    model: Any, quantized: QuantizedFolder, targets: Iterable[str], rank: int, omega: int, seed: int
) -> dict[str, Any]:
    """Replace the GPTQ layers of a loaded model by ones whose codes move; train these alone.

    Layers that are no targets compute as before and pass gradients on. At the start nothing is
    moved: A is random signs, and of B no number counts.

    Args:
        model: Loaded by `requant.models.load.load_model` from the folder; changed in place.
        quantized: The folder.
        targets: Last names of the layers that are trained.
        rank: Columns of A.
        omega: See `requant.quantization.ternary`.
        seed: Of what is drawn.

    Returns:
        Module in the files to its layer, of those that are trained, in the order of their names.
    """
    import torch

    wanted = set(targets)
    generator = torch.Generator().manual_seed(seed)
    trained: dict[str, Any] = {}
    model.requires_grad_(False)
    for name, module in sorted(
        quantized_layers(model, quantized).items(), key=lambda item: item[1]
    ):
        moves = module.rpartition(".")[2] in wanted
        layer = _grid_layer(
            model.get_submodule(name), module, quantized, (rank if moves else 0), omega, generator
        )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
        if moves:
            trained[module] = layer
    # What it was loaded as it is no more, and Trainer would refuse it, or save it as such.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return trained


def updates_of(layers: Mapping[str, Any]) -> Moves:
    """Pack what layers have learned, in their order.

    Args:
        layers: From `put_on_grid`.
    """
    one = next(iter(layers.values()))
    pairs = {
        name: tuple(ternary(part.detach()).cpu() for part in (layer.latent_a, layer.latent_b))
        for name, layer in layers.items()
    }
    return packed_updates(pairs, one.bits, one.omega)


def _grid_layer(
    layer: Any,
    module: str,
    quantized: QuantizedFolder,
    rank: int,
    omega: int,
    generator: "torch.Generator",
) -> Any:
    import torch

    bits = int(quantized.settings["bits"])
    parts = read_parts(module, quantized.headers)
    groups = parts["g_idx"].long()
    points = unpacked(parts["qzeros"], bits)[:, : parts["scales"].shape[1]]
    return _layer_class()(
        codes=unpacked(parts["qweight"].T, bits)[:, : len(groups)].T.to(torch.uint8).contiguous(),
        points=(points + stored_below(quantized.settings)).short(),
        # As the layer computes: in the model's dtype.
        scales=layer.scales.detach(),
        groups=groups,
        bias=layer.bias,
        bits=bits,
        rank=rank,
        omega=omega,
        generator=generator,
    ).to(layer.scales.device)


@cache
def _layer_class() -> Any:
    """Make the class, and the two functions with gradients of their own, with torch at hand."""
    import torch

    class OnGrid(torch.autograd.Function):  # type: ignore[misc]
        """x W', and gradients for x, A and B."""

        @staticmethod
        def forward(ctx: Any, x: Any, a: Any, b: Any, layer: Any) -> Any:
            ctx.save_for_backward(x, a, b)
            ctx.layer = layer
            return torch.matmul(x, layer.weight_in_out(a, b).to(x.dtype))

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (g,) = gradients
            x, a, b = ctx.saved_tensors
            layer = ctx.layer
            # Made again rather than kept: all of them would be the model in 16 bit.
            weight = layer.weight_in_out(a, b).to(g.dtype)
            of_x = torch.matmul(g, weight.T).to(x.dtype) if ctx.needs_input_grad[0] else None
            if not ctx.needs_input_grad[1]:
                return of_x, None, None, None
            step = torch.matmul(x.to(g.dtype).T, g).float() * layer.scales.float()[layer.groups]
            return of_x, step @ b.T, a.T @ step, None

    class Through(torch.autograd.Function):  # type: ignore[misc]
        """Latent to ternary; the gradient passes as it is."""

        @staticmethod
        def forward(ctx: Any, latent: Any) -> Any:
            return ternary(latent)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0]

    class GridLinear(torch.nn.Module):  # type: ignore[misc]
        """A linear layer of GPTQ codes, which a ternary update moves."""

        def __init__(
            self,
            *,
            codes: Any,
            points: Any,
            scales: Any,
            groups: Any,
            bias: Any,
            bits: int,
            rank: int,
            omega: int,
            generator: "torch.Generator",
        ) -> None:
            super().__init__()
            self.in_features, self.out_features = codes.shape
            self.bits, self.largest, self.omega = bits, (1 << bits) - 1, omega
            # They are in the base: a checkpoint holds what is trained.
            for name, tensor in (
                ("codes", codes),
                ("points", points),
                ("scales", scales),
                ("groups", groups),
                ("bias", bias),
            ):
                self.register_buffer(name, tensor, persistent=False)
            trained = rank > 0
            signs = torch.randint(0, 2, (self.in_features, rank), generator=generator)
            self.latent_a = torch.nn.Parameter(signs * 2.0 - 1.0, requires_grad=trained)
            drawn = torch.rand(rank, self.out_features, generator=generator)
            # None counts yet, and they do not begin to all at one step.
            self.latent_b = torch.nn.Parameter((2 * drawn - 1) * SPREAD, requires_grad=trained)

        def weight_in_out(self, a: Any, b: Any) -> Any:
            """Return W', [in, out]."""
            codes = moved(self.codes, steps_of(a, b, self.omega), self.largest)
            return self.scales[self.groups] * (codes - self.points[self.groups])

        def forward(self, x: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            a, b = Through.apply(self.latent_a), Through.apply(self.latent_b)
            out = OnGrid.apply(flat, a, b, self).reshape(*x.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias

    return GridLinear

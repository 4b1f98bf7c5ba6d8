"""Integer reference: what a quantised layer computes when it is run in integer arithmetic.

Training and evaluation use *fake* quantisation: floats that happen to lie on a grid. Here the same
layer is computed with 64-bit integers and a single multiplication by the scales at the end.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.gradient_ptq.activations import ActivationQuantizer
from repro.toolbox.reconstruction.grids import Grid


def integer_layer(
    layer: nn.Linear | nn.Conv2d, grid: Grid, quantizer: ActivationQuantizer, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs a layer whose weight lies on a uniform grid, on quantised inputs, with integers.

    ``y = s·Δ · Σ q_w (q_x - z) + bias`` with the sum over integers.

    Args:
        layer: its weight lies on `grid`; convolutions without groups.
        grid: uniform; one scale, or one per output channel.
        quantizer: of the layer's input, with its range found.
        x: float inputs: (N, …, in), or (N, C, H, W) for a convolution.

    Returns:
        The output, and the int64 accumulators it was made of.
    """
    q_w = grid.position(layer.weight.detach()).round().long()
    z = quantizer.zero.long()
    q_x = ((x / quantizer.step).round().long() + z).clamp(0, quantizer.levels) - z
    scale = grid.scale.flatten()
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        # float64 holds these integers exactly while they are only moved around.
        columns = F.unfold(
            q_x.double(), layer.kernel_size, layer.dilation, layer.padding, layer.stride
        ).long()
        sums = q_w.flatten(1) @ columns
        size = [
            (length + 2 * p - d * (k - 1) - 1) // s + 1
            for length, p, d, k, s in zip(
                x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride,
                strict=True,
            )
        ]  # fmt: skip
        accumulators = sums.view(len(x), -1, *size)
        channel = [-1, 1, 1]
    else:
        accumulators = q_x @ q_w.T
        channel = [-1]
    y = accumulators.to(x.dtype) * (scale * quantizer.step.detach()).view(channel)
    return (y if layer.bias is None else y + layer.bias.detach().view(channel)), accumulators

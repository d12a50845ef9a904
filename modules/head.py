"""The head: a linear layer that is trained on features of equal size in every dimension."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FLOOR = 1e-3
"""Least scale, as a share of the root mean square of all features: some dimensions of some backbones are always 0."""


class ConditionedHead(nn.Linear):
    """A linear layer whose weights are trained for features divided by constants.

    The vectors of backbones differ in size by a factor of thirty, and the dimensions of one vector by as much. Divided
    by the root mean square of each dimension, they are trained alike by one learning rate. A layer that has a bias
    subtracts the mean first. The weights begin at zero, so that no class is ahead before the first step.

    The layer computes `vectors @ folded weights.T + folded bias`: the constants are on the side of the weights, so that
    the logits are those of the ordinary layer `as_linear()`, to the last bit.

    Args:
        width: Dimensions of a vector.
        num_labels: Number of classes.
        bias: Whether each class has a bias.

    Attributes:
        center: What is subtracted from a feature, [width]; 0 before `condition`, and always without a bias.
        scale: What it is divided by, [width]; 1 before `condition`.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, width: int, num_labels: int, bias: bool) -> None:
        super().__init__(width, num_labels, bias=bias)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def reset_parameters(self) -> None:
        """Set the weights to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def condition(self, vectors: Tensor) -> None:
        """Set the constants from the vectors [rows, width] that the layer will be trained on."""
        features = vectors.detach().cpu().double()
        if self.bias is not None:
            self.center.copy_(features.mean(0))
            features = features - features.mean(0)
        squares = features.square()
        least = FLOOR * squares.mean().sqrt().item() or 1.0
        self.scale.copy_(squares.mean(0).sqrt().clamp(min=least))

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weights [num_labels, width] and bias [num_labels] of the ordinary layer that gives the same logits."""
        weight = self.weight / self.scale
        return weight, None if self.bias is None else self.bias - weight @ self.center

    def as_linear(self) -> nn.Linear:
        """Return that layer, with tensors of its own."""
        weight, bias = self.folded()
        layer = nn.Linear(self.in_features, self.out_features, bias=bias is not None)
        layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        return layer

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits [batch, num_labels] of vectors [batch, width]."""
        return linear(vectors, *self.folded())

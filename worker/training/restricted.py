"""How does training move the round's coordinates and nothing else?

Gradients are zeroed at all other positions, so that an optimizer which looks at a gradient as a whole sees only what
may move; and after every step these positions get their old values back, whatever weight decay or a proximal term
would have made of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shared.codec.coordinates import Coordinates
from shared.errors import LocalProtocolError


class Restriction:
    """Holds all values of some parameters but those at the coordinates. Takes 5 bytes per value of memory.

    Args:
        parameters: what federates, in the order of the flat vector, with the values to be held.
        coordinates: (k,) positions that may move, each below d.

    Raises:
        LocalProtocolError: a position lies outside the model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], coordinates: Coordinates) -> None:
        dimension = sum(parameter.numel() for parameter in parameters)
        if len(coordinates) and not 0 <= coordinates.min() <= coordinates.max() < dimension:
            raise LocalProtocolError(f"coordinates up to {coordinates.max()} of a model of {dimension} values")
        held = torch.ones(dimension, dtype=torch.bool)
        held[torch.from_numpy(coordinates)] = False
        pieces = torch.split(held, [parameter.numel() for parameter in parameters])
        self._held = [
            (parameter, piece.view(parameter.shape).to(parameter.device), parameter.detach().clone())
            for parameter, piece in zip(parameters, pieces, strict=True)
        ]

    def mask_gradients(self) -> None:
        """Zero the gradients of what is held, also where they are not finite."""
        for parameter, held, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(held, 0.0)

    def restore(self) -> None:
        """Give what is held its old values back, bit for bit."""
        with torch.no_grad():
            for parameter, held, before in self._held:
                torch.where(held, before, parameter, out=parameter.data)

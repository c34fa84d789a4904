"""The number that divides similarities: fixed, scheduled over a run, or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simcse.config.settings import TemperatureConfig


class Temperature(nn.Module):
    """Fixed, scheduled over the run, or a learned logarithm within bounds."""

    def __init__(self, config: TemperatureConfig) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0
        """0 at the first step, 1 at the last; set before each step."""
        self.logarithm: nn.Parameter | None = None
        if config.schedule == "learnable":
            self.logarithm = nn.Parameter(torch.tensor(math.log(config.start)))

    @classmethod
    def of(cls, temperature: float | Temperature) -> Temperature:
        """A fixed temperature from a number; others as they are."""
        if isinstance(temperature, Temperature):
            return temperature
        return cls(TemperatureConfig(start=temperature))

    def forward(self) -> float | Tensor:
        """The temperature; a scalar tensor where it is learned."""
        config = self.config
        if self.logarithm is not None:
            with torch.no_grad():  # on the parameter, as CLIP does: outside the bounds, no gradient
                self.logarithm.clamp_(math.log(config.minimum), math.log(config.maximum))
            return self.logarithm.exp()
        if config.end is None:
            return config.start
        share = self.progress
        if config.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return config.start + (config.end - config.start) * share

"""Mixed precision of forward passes."""

from __future__ import annotations

import torch

from simcse.config.settings import Precision


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision of a forward pass.

    Args:
        device: Where the pass runs.
        precision: Of the config; ``float32`` changes nothing.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")

"""Mixed precision of forward passes."""

from __future__ import annotations

import torch

from simcse.config.settings import Precision


def native_precision() -> Precision:
    """``bfloat16`` where this machine has instructions for it, else ``float32``.

    Emulation does not count: it is slower than float32.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif torch.accelerator.is_available():
        native = False  # Apple's GPUs: autocast to bfloat16 gains nothing there
    else:
        found = torch.cpu.get_capabilities()
        native = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def resolved(precision: Precision) -> Precision:
    """What ``auto`` is on this machine; any other stays."""
    return native_precision() if precision == "auto" else precision


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision of a forward pass.

    Args:
        device: Where the pass runs.
        precision: ``float32`` changes nothing; ``auto`` is :func:`native_precision`.
    """
    chosen = resolved(precision)
    dtype = torch.float16 if chosen == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=chosen != "float32")

"""SimCSE: train, evaluate and use sentence embeddings learned by contrast.

``from simcse import SimCSE`` is the whole public Python interface for using a model. Importing
this package does not import torch; the first use of :class:`SimCSE` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simcse.inference.model import SimCSE

__version__ = "0.1.0"
__all__ = ["SimCSE", "__version__"]


def __getattr__(name: str) -> object:
    """Load :class:`SimCSE` on first use, so that ``import simcse`` stays light (PEP 562)."""
    if name == "SimCSE":
        from simcse.inference.model import SimCSE

        return SimCSE
    raise AttributeError(f"module 'simcse' has no attribute {name!r}")

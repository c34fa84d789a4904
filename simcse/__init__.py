"""SimCSE: train, evaluate and use sentence embeddings learned by contrast.

:class:`SimCSE`, :func:`load_config`, :func:`train` and :func:`evaluate`, with the classes of what
they take and give, are the whole public Python interface. Importing this package does not import
torch; the first use of one of them does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Evaluation",
    "Match",
    "Run",
    "SimCSE",
    "__version__",
    "evaluate",
    "load_config",
    "train",
]

_HOMES = {
    "Config": "simcse.config.settings",
    "Evaluation": "simcse.evaluation.protocol",
    "Match": "simcse.inference.model",
    "Run": "simcse.reports.runs",
    "SimCSE": "simcse.inference.model",
    "evaluate": "simcse.api",
    "load_config": "simcse.config.reading",
    "train": "simcse.api",
}


if TYPE_CHECKING:  # without __getattr__, for which every name would exist
    from simcse.api import evaluate, train
    from simcse.config.reading import load_config
    from simcse.config.settings import Config
    from simcse.evaluation.protocol import Evaluation
    from simcse.inference.model import Match, SimCSE
    from simcse.reports.runs import Run
else:

    def __getattr__(name: str) -> object:
        """Load a public name on first use, so that ``import simcse`` stays light (PEP 562)."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'simcse' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the public names, for ``help(simcse)`` and completion."""
    return sorted({*globals(), *__all__})

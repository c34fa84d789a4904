"""What a result was made with: versions, machine, source commit, seed, command."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from simcse import __version__

_LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "tokenizers",
    "numpy",
    "scipy",
)


def environment(seed: int, command: list[str]) -> dict[str, Any]:
    """Plain JSON values that let a stranger make the same run again."""
    return {
        "simcse": __version__,
        "commit": _commit(Path(__file__).parent.parent),
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def _commit(clone: Path) -> str | None:
    """Commit of the clone, with ``-dirty`` where files have changed; ``None`` outside a clone."""
    if not (clone / ".git").exists():  # git would look further up and find somebody else's
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()

"""Write a finished run's model in the form in which it comes with the package.

    python scripts/ship_model.py outputs/distill_wiki_mini simcse/assets/mini-distilled

The model is what ``simcse export`` writes; its weights are float16 on disk and load as float32. A
card is written by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save

from simcse.cli.main import main as simcse

WEIGHTS = "model.safetensors"
LEFT_OUT = shutil.ignore_patterns("README.md", "figures")


def store_as_float16(folder: Path) -> None:
    """Halve the weights of a model's folder on disk; they are loaded as float32."""
    weights = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).write_bytes(save(weights, {"format": "pt"}))
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Export the run and store it in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("folder", type=Path, help="where the model goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "model"
        if status := simcse(["export", arguments.run, str(exported)]):
            return status
        store_as_float16(exported)
        shutil.copytree(exported, arguments.folder, ignore=LEFT_OUT, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

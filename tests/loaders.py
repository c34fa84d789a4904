"""Runs the first two examples of a card, as a reader would who never saw this project.

``python loaders.py FOLDER …`` writes ``<folder>.npz`` beside each folder: what the card's examples
for sentence-transformers and for transformers call ``embeddings``.
"""

import os
import re
import sys
from pathlib import Path

import numpy as np
import sentence_transformers

sys.modules["simcse"] = None  # importing it is an error from here on
for folder in map(Path, sys.argv[1:]):
    os.chdir(folder.parent)  # the card calls the model by the folder's name
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = {}
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for name, block in zip(("stock", "plain"), blocks[:2], strict=True):
        names = {}
        exec(block, names)
        found[name] = np.asarray(names["embeddings"])
    np.savez(folder.with_suffix(".npz"), version=sentence_transformers.__version__, **found)

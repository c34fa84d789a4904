"""How often training waits for the device: when a line is logged or a checkpoint written, no more.

On a GPU every such wait leaves a gap between kernels. Without one the waits are counted: whatever
makes a Python value of a tensor.
"""

import sys
import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.training import loop

METHODS = ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__", "__index__")
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, on the thread that trains."""

    def __init__(self):
        super().__init__()
        self.count = Counter()
        self.thread = None

    def note(self, name):
        """Count a wait, unless it is transformers' own."""
        if threading.get_ident() != self.thread:
            return
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.endswith("masking_utils.py"):
            frame = frame.f_back
        # Whether a batch has padding: transformers asks at the start of every forward pass.
        self.count["transformers" if frame else name] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in OPERATIONS or (
            name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.note(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """Counts while the loop runs."""
    waits, train = Waits(), loop.train

    def counting(*args):
        waits.count.clear()
        waits.thread = threading.get_ident()
        try:
            with waits:
                return train(*args)
        finally:
            waits.thread = None

    def counted(name, original):
        def method(self, *args):
            waits.note(name)
            return original(self, *args)

        return method

    monkeypatch.setattr(loop, "train", counting)
    for name in METHODS:
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    return waits


CASES = {
    "info_nce": [],
    "learned temperature": ["objective.temperature={start: 0.05, schedule: learnable}"],
    "terms": [
        "objective.terms=[decoupled, clip, nt_xent, dino, distill_start, distill_l2, "
        "distill_similarity]",
        "objective.teacher={model}",
    ],
    "dino": ["objective.terms=dino"],
    "teacher": ["objective.terms=distill_l2", "objective.teacher={model}"],
    "guide": ["objective.guide={model}"],
    "dropout of views": ["views=[{dropout: 0.1},{dropout: 0.2}]"],
    "cls": ["encoder.pooling=cls"],
    "checkpointing": ["training.activation_checkpointing=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_more_steps_wait_no_more_often(arguments, waits, tiny, tmp_path, name):
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), tmp_path / "model")
    settings = [word.replace("{model}", str(tmp_path / "model")) for word in CASES[name]]
    counts = []
    for steps in (3, 9):
        words = [f"training.steps={steps}", f"output={tmp_path / str(steps)}"]
        words += ["training.log_every=100", "evaluation.every=100"]
        assert main([*arguments, *settings, *words]) == 0
        assert waits.count["tolist"] >= 2  # the log of the first and of the last step
        del waits.count["transformers"]
        counts.append(Counter(waits.count))
    assert counts[1] - counts[0] == Counter()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for_between_lines_of_the_log(arguments, run, monkeypatch):
    backpropagate = loop.backpropagate

    def strict(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return backpropagate(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "backpropagate", strict)
    monkeypatch.setattr(
        "transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *_: False
    )
    assert main([*arguments, "training.log_every=100", "evaluation.every=100"]) == 0

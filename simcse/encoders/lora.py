"""Low-rank adapters (LoRA), by peft: what is trained in the place of an encoder's own weights."""

from __future__ import annotations

import warnings

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from simcse.config.settings import LoraConfig
from simcse.errors import UserError, first_line

TRAINED_FILE = "trained.safetensors"
"""What a checkpoint holds of the model."""
FOLDER = "adapter"
"""Where a run keeps the adapters, beside the model that they are merged into."""


def add(network: PreTrainedModel, config: LoraConfig, base: str, revision: str | None) -> None:
    """Add float32 adapters to some layers, and train nothing else of the network.

    They add nothing at first: one of their two matrices is zero.

    Args:
        network: In place.
        config: With a rank.
        base: What saved adapters name as the model that they belong to.
        revision: Its commit on the Hub.

    Raises:
        UserError: peft is not installed, or no layer has one of the names.
    """
    try:
        from peft import LoraConfig as Settings
    except ImportError as error:
        raise UserError(
            "encoder.lora needs a package that is not installed: pip install 'simcse-trainer[lora]'"
        ) from error
    layers = {f".{name}": module for name, module in network.named_modules()}
    for target in config.targets:
        if not target or not any(name.endswith(f".{target}") for name in layers):
            kinds = (nn.Linear, Conv1D)
            linear = {n.rpartition(".")[2] for n, m in layers.items() if isinstance(m, kinds)}
            raise UserError(
                f"encoder.lora.targets: no layer is called {target!r}; linear layers are "
                f"{', '.join(sorted(linear))}"
            )
    settings = Settings(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets or "all-linear",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPT-2's transposed layers, which it sets right
            network.add_adapter(settings)
    except ValueError as error:
        raise UserError(f"encoder.lora.targets: {first_line(error)}") from error
    settings.base_model_name_or_path, settings.revision = base, revision
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def trained(model: SentenceTransformer) -> dict[str, Tensor]:
    """Weights and buffers but for those of the network that adapters were added to."""
    weights: dict[str, Tensor] = model.state_dict()
    return {k: v for k, v in weights.items() if ".lora_" in k or not k.startswith("0.")}


def merge(network: PreTrainedModel) -> None:
    """Add what the adapters add to the network's own weights, in place, and remove them.

    The library's own way needs its own wrapper around the network, which has other names of weights
    than what others load.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    network.delete_adapter("default")

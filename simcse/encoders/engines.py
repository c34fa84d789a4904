"""How the encoder is spread over the processes of a run, by PyTorch's own engines.

One process holds the model as it is. Of several, each holds all of it
(:class:`~torch.nn.parallel.DistributedDataParallel`, which sends gradients while the backward pass
goes on), or a share of it (``training.sharding: full``: FSDP2, :func:`fully_shard`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from simcse.encoders import encoder

Spread = Literal["no", "copies", "shards"]


class Engine:
    """The encoder of a run, on one process or several.

    Args:
        model: On its device, the same in every process.
        spread: ``no`` for one process, ``copies`` for DistributedDataParallel; ``shards`` replaces
            the model's parameters by those of FSDP2.
    """

    def __init__(self, model: SentenceTransformer, spread: Spread = "no") -> None:
        self.model = model
        self.network: nn.Module = model
        """What a training pass calls."""
        self._whole: SentenceTransformer | None = None
        if spread == "shards":
            self._whole = copy.deepcopy(model).requires_grad_(False)
            for layers in _layer_stacks(model):
                for layer in layers:
                    fully_shard(layer)
            fully_shard(model)
        elif spread == "copies":
            freeze_unused(model)
            device = None if model.device.type == "cpu" else [model.device]
            self.network = DistributedDataParallel(
                model, device_ids=device, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def without_sync(self) -> AbstractContextManager[None]:
        """Gradients stay in this process; those of the next pass outside of it take them along."""
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def whole(self) -> SentenceTransformer:
        """The model with all of its weights; every process has to ask."""
        if self._whole is None:
            return self.model
        for old, new in _paired(self._whole, self.model):
            old.copy_(whole_tensor(new))
        return self._whole

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take whole weights over, each process its share.

        Raises:
            RuntimeError: Names or shapes are not the model's.
        """
        if self._whole is None:
            self.model.load_state_dict(weights)
            return
        self._whole.load_state_dict(weights)
        for new, old in _paired(self._whole, self.model):
            old.copy_(like(new.to(old.device), old))


def freeze_unused(model: SentenceTransformer) -> None:
    """Exclude parameters that the training embeddings do not depend on, such as a pooler's.

    Their gradient never comes, and DistributedDataParallel would wait for it.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    total = torch.zeros((), device=model.device)
    for route in encoder.routes(model):
        found = model.tokenizer(["a text", "another"], padding=True, return_tensors="pt")
        features = {key: value.to(model.device) for key, value in found.items()}
        task = {} if route is None else {"task": route}
        total = total + model(features, **task)[encoder.training_key(model)].float().sum()
    gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    for (_, parameter), gradient in zip(named, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients so that their common norm is at most ``limit``; 0 leaves them.

    Returns:
        The norm before, a scalar.
    """
    some = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in some if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    norms = [get_total_norm([p.grad for p in kind]) for kind in kinds if kind]  # type: ignore[misc]
    if not norms:
        return torch.zeros(())
    norm = torch.stack([whole_tensor(norm).float() for norm in norms]).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit or math.inf, norm)
    return norm  # type: ignore[no-any-return]


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all processes; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's share of a whole tensor where ``parameter`` is sharded, else the tensor."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """State of an optimiser in whole tensors on the CPU; every process has to ask."""
    state = optimizer.state_dict()
    whole = {
        number: {key: whole_tensor(value).cpu() for key, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": whole}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from :func:`optimizer_state`, however many processes wrote it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {}
    for number, values in state["state"].items():
        parameter = parameters[number]
        # A kernel that updates all parameters at once does not look at shapes again.
        shapes = [value.shape for value in values.values() if value.ndim]
        if any(shape != parameter.shape for shape in shapes):
            raise ValueError("the optimiser's state has other shapes than the parameters")
        shares[number] = {
            key: like(value.to(parameter.device), parameter) if value.ndim else value
            for key, value in values.items()
        }
    optimizer.load_state_dict({**state, "state": shares})


def _paired(a: nn.Module, b: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
    """Parameters and buffers of the same name."""
    return zip(a.state_dict().values(), b.state_dict().values(), strict=True)


def _layer_stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Lists of layers, without those inside of other layers."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(m) for stack in stacks for m in stack.modules() if m is not stack}
    return [stack for stack in stacks if id(stack) not in inner]

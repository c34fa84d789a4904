"""Several processes that train one model: what they exchange, who writes, how they end together.

Started by ``torchrun`` or ``accelerate launch``, which tell each process its place in the
environment. With one process every function here returns what it was given.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parameter import Parameter

from simcse.errors import SaidElsewhereError, Terminated, UserError, first_line

# How long a step waits for a process that neither answers nor has ended (a machine that is off or
# cut off; one that has ended is noticed at once), and how long work of the first one may take.
_STEP = timedelta(minutes=10)
_WORK = timedelta(days=2)
# How the backends say, in a RuntimeError, that another process is gone.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "gloo",
    "NCCL",
    "recvValue failed",
)
_PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # beside LOCAL_RANK
_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")

T = TypeVar("T")

_waiting: dist.ProcessGroup | None = None


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def session() -> Iterator[None]:
    """Join the other processes; only the first one prints, and one of them prints an error.

    Raises:
        UserError: More processes than GPUs on a machine, a way to share the model that is not
            supported, or another process that is gone.
        SaidElsewhereError: Another process prints what went wrong.
    """
    global _waiting
    if named := [name for name in _SHARDED if os.environ.get(name, "").lower() == "true"]:
        kind = named[0].removeprefix("ACCELERATE_USE_")
        if os.environ.get("RANK", "0") != "0":
            raise SaidElsewhereError("the first process says what went wrong")
        raise UserError(
            f"accelerate: {kind} is not supported; training.sharding=full takes its place"
        )
    local = _local_rank()
    if torch.accelerator.is_available() and local >= torch.accelerator.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU of its own, there are "
            f"{torch.accelerator.device_count()}; start as many processes as there are GPUs"
        )
    try:
        store, number, processes = next(rendezvous("env://", timeout=_STEP))
        dist.init_process_group(store=store, rank=number, world_size=processes, timeout=_STEP)
    except (RuntimeError, ValueError) as error:  # DistError is the former
        raise UserError(
            f"the processes do not meet at MASTER_ADDR={os.environ['MASTER_ADDR']}, "
            f"MASTER_PORT={os.environ['MASTER_PORT']} ({first_line(error)})"
        ) from error
    _waiting = dist.new_group(backend="gloo", timeout=_WORK)
    signal.signal(signal.SIGTERM, _terminate)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        try:
            with redirect_stdout(nowhere) if number else nullcontext():
                yield
        except BaseException as error:
            # The launcher ends all processes once one has failed: not before it is said why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not _is_first_to_fail(store):
                raise SaidElsewhereError("another process says what went wrong") from error
            if (reason := _gone(error)) is not None:
                raise UserError(
                    "another process of this run has ended or does not answer "
                    f"({first_line(reason)[-120:]}); the same command resumes from the last "
                    "checkpoint"
                ) from error
            raise
    dist.destroy_process_group()


def wait() -> None:
    """Wait until every process is here, however long the first one works."""
    if world() > 1:
        dist.barrier(group=_waiting)


@contextmanager
def first() -> Iterator[None]:
    """The first process runs the block alone, then the others do, and find what it has cached."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def from_first(function: Callable[[], T]) -> T:
    """What ``function`` returns on the first process, which alone calls it."""
    if world() == 1:
        return function()
    found: list[Any] = [function() if is_first() else None]
    dist.broadcast_object_list(found, src=0, group=_waiting)
    result: T = found[0]
    return result


def highest(number: int) -> int:
    """The highest of all processes' numbers; no device is waited for."""
    if world() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_waiting)
    return int(tensor)


def own_part(rows: list[int]) -> list[int]:
    """This process's part of a batch, whose size is a multiple of their number."""
    size = len(rows) // world()
    return rows[rank() * size : (rank() + 1) * size]


def shared(encode: Callable[[list[str]], np.ndarray], texts: list[str]) -> np.ndarray:
    """``encode(texts)``, ``(texts, dim)``, to which every process contributes a share."""
    if world() == 1:
        return encode(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # shares take equal time
    parts: list[Any] = [None] * world()
    own = encode([texts[i] for i in order[rank() :: world()]])
    dist.all_gather_object(parts, own, group=_waiting)
    result = np.empty((len(texts), own.shape[1]), dtype=own.dtype)
    for number, part in enumerate(parts):
        result[order[number :: world()]] = part
    return result


def mean(number: Tensor) -> Tensor:
    """The mean of all processes' scalars."""
    return gather(number[None]).mean()


def gather(own: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all processes, equal in shape, in their order along ``dim``.

    The gradient goes to this process's part, times the number of processes: each of them computes
    the same loss from the whole batch, and gradients are averaged afterwards.
    """
    if world() == 1:
        return own
    result: Tensor = _Gather.apply(own, dim)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather gives the same gradient, but sums over all
    # processes in the backward pass what all of them know already.
    @staticmethod
    def forward(ctx: Any, own: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        parts = [own.new_empty(own.shape) for _ in range(world())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        size = gradient.shape[ctx.dim] // world()
        return gradient.narrow(ctx.dim, rank() * size, size) * world(), None


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace gradients by their mean over all processes, in one all-reduce.

    A parameter that has a gradient on some processes only counts as 0 on the others; one without
    a gradient anywhere keeps none. For the few parameters of an objective.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if world() == 1 or not learned:
        return
    present = torch.tensor([p.grad is not None for p in learned]).to(learned[0])
    parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in learned]
    flat = torch.cat([*parts, present])
    dist.all_reduce(flat)
    *means, shares = torch.split(flat / world(), [*(p.numel() for p in learned), len(learned)])
    for parameter, mean, share in zip(learned, means, shares.tolist(), strict=True):
        if share:
            parameter.grad = mean.view_as(parameter)


def _local_rank() -> int:
    """Number of this process on its machine.

    Raises:
        UserError: It is none, or the launcher has not said all that there is to say.
    """
    if missing := [name for name in _PLACE if not os.environ.get(name)]:
        raise UserError(
            f"environment: LOCAL_RANK without {', '.join(missing)}; start with torchrun or "
            "accelerate launch, or unset LOCAL_RANK"
        )
    text = os.environ["LOCAL_RANK"]
    if not text.isdecimal():
        raise UserError(f"environment: LOCAL_RANK={text}: expected a number")
    return int(text)


def _is_first_to_fail(store: Any) -> bool:
    try:
        return int(store.add("failed", 1)) == 1
    except RuntimeError:  # DistError among them: whoever held the store is gone
        return True


def _gone(error: BaseException | None) -> BaseException | None:
    """The exception, among those that led to this one, that tells of the end of a process."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _GONE)
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated

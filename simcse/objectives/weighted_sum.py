"""The weighted sum of a config's terms, and what they learn or carry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, is_grad_enabled, nn, no_grad
from torch.nn import functional

from simcse.config.settings import Config
from simcse.encoders import encoder
from simcse.encoders.mini_batches import Features
from simcse.errors import UserError
from simcse.objectives.diagnostics import diagnostics
from simcse.objectives.objective import Batch, Objective, PairObjective
from simcse.objectives.temperature import Temperature
from simcse.objectives.terms import GIVEN, find, needs, running

STATE_WEIGHTS = "objective.safetensors"
_SHOWN = 256  # anchors whose candidates the logged diagnostics look at


class WeightedSum(nn.Module):
    """All terms of a config. It knows none of them by name.

    What they learn or carry is in the optimiser, clipped, written into every checkpoint, and never
    exported.

    Args:
        model: The encoder to train.
        config: Resolved (:func:`simcse.objectives.terms.resolve`).
        teacher_width: Of the teacher's embeddings, where there is a teacher.

    Raises:
        UserError: A term cannot be built.
    """

    def __init__(
        self, model: SentenceTransformer, config: Config, teacher_width: int | None
    ) -> None:
        super().__init__()
        self.temperature = Temperature(config.objective.temperature)
        dims = config.objective.dims
        weights = config.objective.dim_weights or [1.0] * len(dims)
        self.sizes = list(zip(dims, weights, strict=True))
        """Of the cut embeddings that the terms see, with their weights; none: whole ones."""
        values = (
            model,
            config.encoder,
            self.temperature,
            encoder.width(model),
            teacher_width,
            config.training.mini_batch_size,
            config.training.precision,
        )
        given = dict(zip(GIVEN, values, strict=True))
        self.named: list[tuple[str, float, Objective]] = []
        """Name, weight and term."""
        for name, settings in config.objective.terms.items():
            found = find(name)
            wanted = inspect.signature(found).parameters
            arguments = {key: value for key, value in given.items() if key in wanted}
            with running(name):
                term = found(**arguments, **(settings.model_extra or {}))
            if "_modules" not in vars(term):
                raise UserError(f"objective.terms: {name}.__init__ does not call super().__init__")
            self.named.append((name, settings.weight, term))
        self.terms = nn.ModuleList(term for _, _, term in self.named)
        self.asked = [list(needs(type(term))) for _, _, term in self.named]
        self.compares = any(self.asked)
        """Whether a term looks at embeddings; else all look at token states."""
        self.last: Batch | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms on embeddings by name; what they sum up to is the loss.

        With ``objective.dims`` each of them once a size, as ``<name>/<size>``.
        """
        self.last = replace(batch, views=batch.views.detach())
        if not self.sizes:
            return dict(self._losses(batch))
        return {
            f"{name}/{size}": weight * loss
            for size, weight in self.sizes
            for name, loss in self._losses(replace(batch, views=truncated(batch.views, size)))
        }

    def _losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        for (name, weight, term), asked in zip(self.named, self.asked, strict=True):
            if asked:
                with running(name):
                    loss = term(**{key: getattr(batch, key) for key in asked})
                yield name, weight * _scalar(name, loss)

    def token_losses(
        self, states: Callable[[Features], Tensor], input_ids: Tensor, attention_mask: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and weighted part of the terms on token states; as in :class:`Objective`."""
        for name, weight, term in self.named:
            with running(name):
                for part in term.token_losses(states, input_ids, attention_mask):
                    yield name, weight * _scalar(name, part)

    def before_step(self, progress: float) -> None:
        """Called with the share of the way from the first step, 0, to the last, 1."""
        self.temperature.progress = progress

    def after_step(self, model: SentenceTransformer, progress: float) -> None:
        """As in :class:`Objective`."""
        for name, _, term in self.named:
            with running(name):
                term.after_step(model, progress)

    def log_values(self) -> dict[str, float]:
        """Temperature and diagnostics of the last batch, and what the terms log themselves."""
        values: dict[str, float] = {}
        compared = [term for _, _, term in self.named if isinstance(term, PairObjective)]
        if compared and self.last is not None:
            logits, temperature = compared[0].logits(self.last)
            values = {"temperature": temperature, **diagnostics(logits[:_SHOWN], temperature)}
        for name, _, term in self.named:
            with running(name):
                values |= {str(key): float(value) for key, value in term.log_values().items()}
        return values

    def warnings(self) -> list[str]:
        """What is going wrong, of all terms."""
        return [warning for _, _, term in self.named if (warning := term.warning())]

    def save(self, folder: Path) -> None:
        """Write what the terms learn or carry; nothing where there is nothing."""
        own = self._own()
        if own:
            save_file(
                {key: value.detach().clone() for key, value in own.items()}, folder / STATE_WEIGHTS
            )

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        own = self._own()
        if own:
            saved = load_file(folder / STATE_WEIGHTS)
            with no_grad():
                for key, value in own.items():
                    value.copy_(saved[key])

    def _own(self) -> dict[str, Tensor]:
        own: dict[int, tuple[str, Tensor]] = {}
        for key, value in self.state_dict(keep_vars=True).items():
            own.setdefault(value.data_ptr(), (key, value))  # tied weights once
        return dict(own.values())


def truncated(views: Tensor, size: int) -> Tensor:
    """The first ``size`` numbers of embeddings, ``(…, dim)``, at length 1."""
    return functional.normalize(views[..., :size], dim=-1)


def _scalar(name: str, loss: object) -> Tensor:
    """The loss of a term.

    Raises:
        UserError: It is no scalar tensor that depends on what is trained.
    """
    if isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point():
        if loss.requires_grad or not is_grad_enabled():
            return loss
        raise UserError(f"objective.terms: the loss of {name} depends on nothing that is trained")
    given = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise UserError(f"objective.terms: {name} gives {given}; expected a scalar tensor, the loss")

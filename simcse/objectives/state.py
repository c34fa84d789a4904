"""What an objective learns or carries: temperature, prototypes and teacher, MLM head, linear map.

It is in the optimiser, clipped, saved and restored with every checkpoint, and never exported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.modeling_outputs import BaseModelOutput

from simcse import distributed
from simcse.config.settings import Config, Precision, TemperatureConfig
from simcse.encoders import encoder
from simcse.encoders.engines import whole_tensor
from simcse.encoders.mini_batches import Features, embed_in_mini_batches, mini_batches
from simcse.errors import UserError, first_line
from simcse.objectives import dino

STATE_WEIGHTS = "objective.safetensors"
_IGNORED = -100  # what transformers labels a token that is not to be predicted


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision of a forward pass.

    Args:
        device: Where the pass runs.
        precision: Of the config; ``float32`` changes nothing.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


class Temperature(nn.Module):
    """Fixed, scheduled over the run, or a learned logarithm within bounds."""

    def __init__(self, config: TemperatureConfig) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0
        """0 at the first step, 1 at the last; set before each step."""
        self.logarithm: nn.Parameter | None = None
        if config.schedule == "learnable":
            self.logarithm = nn.Parameter(torch.tensor(math.log(config.start)))

    def forward(self) -> float | Tensor:
        """The temperature; a scalar tensor where it is learned."""
        config = self.config
        if self.logarithm is not None:
            with torch.no_grad():  # on the parameter, as CLIP does: outside the bounds, no gradient
                self.logarithm.clamp_(math.log(config.minimum), math.log(config.maximum))
            return self.logarithm.exp()
        if config.end is None:
            return config.start
        share = self.progress
        if config.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return config.start + (config.end - config.start) * share


class PrototypeHead(nn.Module):
    """DINO's head: an MLP onto the sphere, then cosines with K prototypes.

    Caron et al. 2021, section 3.1 and appendix C; two layers and widths to fit sentence embeddings.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, width))
        nn.init.normal_(self.prototypes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores in [-1, 1], shape ``(..., prototypes)``, of embeddings ``(..., width)``."""
        unit = functional.normalize(self.mlp(embeddings), dim=-1)
        return functional.linear(unit, functional.normalize(self.prototypes, dim=-1))


class SelfTeacher(nn.Module):
    """Student's head, and a teacher (encoder, head, centre) that follows as a moving average."""

    def __init__(self, model: SentenceTransformer, config: Config) -> None:
        super().__init__()
        self.config = config.objective.dino
        self.mini_batch_size = config.training.mini_batch_size
        self.precision = config.training.precision
        self.key = encoder.training_key(model)
        self.head = PrototypeHead(encoder.width(model), self.config.prototypes)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(self.config.prototypes))
        self.last: Tensor | None = None
        """The teacher's scores of the last batch, ``(2 * batch, prototypes)``."""

    def forward(self, student: Tensor, features: dict[str, Tensor]) -> Tensor:
        """DINO's loss.

        Args:
            student: Embeddings of both views, shape ``(2, batch, dim)``, of all processes.
            features: What the student saw in this process, ``(2 * rows, length)``; the teacher
                sees it through dropout of its own.
        """
        self.teacher.train()
        with torch.no_grad():
            embeddings = embed_in_mini_batches(self._embed, features, self.mini_batch_size)
            scores = self.teacher_head(embeddings).view(2, -1, self.config.prototypes)
            scores = distributed.gather(scores, 1)
        center = self.get_buffer("center")
        loss = dino(
            self.head(student),
            scores,
            center,
            self.config.student_temperature,
            self.config.teacher_temperature,
        )
        self.last = scores.flatten(0, 1)
        momentum = self.config.center_momentum
        center.mul_(momentum).add_(self.last.mean(dim=0), alpha=1 - momentum)
        return loss

    def _embed(self, features: Features) -> Tensor:
        with mixed_precision(features["input_ids"].device, self.precision):
            embeddings: Tensor = self.teacher(dict(features))[self.key]
        return embeddings.float()

    @torch.no_grad()
    def follow(self, model: SentenceTransformer, progress: float) -> None:
        """Move the teacher towards the student, after an optimiser step; see ``after_step``."""
        start = self.config.momentum
        momentum = 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
        pairs = ((self.teacher, model), (self.teacher_head, self.head))
        for teacher, student in pairs:
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(whole_tensor(new.detach()), 1 - momentum)


class _GivenStates(nn.Module):
    """Stands in for the encoder of a masked language model: its states are known already."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """The states, whatever is asked."""
        return BaseModelOutput(last_hidden_state=self.states)


class MaskedLanguageModel(nn.Module):
    """The encoder's own, pre-trained masked-language-model head."""

    def __init__(self, model: SentenceTransformer, config: Config) -> None:
        super().__init__()
        transformer = encoder.transformer_of(model)
        try:
            self.hide = DataCollatorForLanguageModeling(
                transformer.tokenizer, mlm_probability=config.objective.mlm_probability
            )
            full: Any
            full, report = AutoModelForMaskedLM.from_pretrained(
                encoder.source_of(config.encoder.name, config.encoder.revision),
                trust_remote_code=config.encoder.trust_remote_code,
                dtype=torch.float32,  # the default is whatever the checkpoint was stored in
                output_loading_info=True,
            )
            if full.config.is_encoder_decoder:
                raise ValueError("it is an encoder with a decoder, whose head is another one")
            own = f"{full.base_model_prefix}."  # weights of the encoder
            if new := sorted(key for key in report["missing_keys"] if not key.startswith(own)):
                raise ValueError(f"its files lack {', '.join(new)}")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                "objective.terms: mlm needs an encoder with a masked-language-model head and a "
                f"mask token; {config.encoder.name}: {first_line(error)}"
            ) from error
        self.words = transformer.model.get_input_embeddings
        words = full.get_input_embeddings().weight
        setattr(full, full.base_model_prefix, _GivenStates())
        # The word embeddings of the encoder that is trained take the place of the head's copy.
        self.tied = [name for name, p in full.named_parameters() if p is words]
        for name in self.tied:
            module = full.get_submodule(name.rpartition(".")[0])
            del module.weight
            module.register_buffer("weight", torch.empty(0), persistent=False)
        self.full = full
        self.mini_batch_size = config.training.mini_batch_size

    def losses(
        self, states: Callable[[Features], Tensor], input_ids: Tensor, attention_mask: Tensor
    ) -> Iterator[Tensor]:
        """Cross-entropy at hidden tokens, in parts that sum up to the mean over all of them.

        80% of the hidden tokens become [MASK], 10% another token. Of several processes each yields
        the parts of its own texts, times their number, since gradients are averaged afterwards.

        Args:
            states: Gives the encoder's token states, ``(texts, length, width)``.
            input_ids: int64, ``(texts, length)``.
            attention_mask: The same shape.
        """
        special = torch.tensor(self.hide.tokenizer.all_special_ids, device=input_ids.device)
        keep = torch.isin(input_ids, special) | (attention_mask == 0)
        hidden, labels = self.hide.torch_mask_tokens(
            input_ids.cpu().clone(), special_tokens_mask=keep.cpu()
        )
        hidden, labels = hidden.to(input_ids.device), labels.to(input_ids.device)
        features = {"input_ids": hidden, "attention_mask": attention_mask, "labels": labels}
        asked = distributed.gather((labels != _IGNORED).sum(dim=1)).sum().clamp(min=1)
        for _, part in mini_batches(features, self.mini_batch_size):
            labels = part.pop("labels")
            total = self.cross_entropy(states(part), labels)
            yield total * distributed.world() / asked

    def cross_entropy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Summed over the tokens that have a label, float32."""
        getattr(self.full, self.full.base_model_prefix).states = states
        words = dict.fromkeys(self.tied, self.words().weight)
        logits: Tensor = functional_call(self.full, words, (labels,)).logits
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED, reduction="sum"
        )


class ObjectiveState(nn.Module):
    """Whatever the terms of a config learn or carry.

    Raises:
        UserError: The encoder has no masked-language-model head.
    """

    def __init__(
        self, model: SentenceTransformer, config: Config, teacher_width: int | None
    ) -> None:
        super().__init__()
        terms = config.objective.terms
        self.temperature = Temperature(config.objective.temperature)
        self.self_teacher = SelfTeacher(model, config) if "dino" in terms else None
        self.mlm = MaskedLanguageModel(model, config) if "mlm" in terms else None
        width = encoder.width(model)
        self.to_teacher: nn.Module = nn.Identity()
        if "distill_l2" in terms and teacher_width is not None and teacher_width != width:
            self.to_teacher = nn.Linear(width, teacher_width, bias=False)

    def before_step(self, progress: float) -> None:
        """Called with the share of the way from the first step, 0, to the last, 1."""
        self.temperature.progress = progress

    def after_step(self, model: SentenceTransformer, progress: float) -> None:
        """Called once weights have moved.

        Args:
            model: The student.
            progress: Share of the run's steps that came before this one, 0 after the first.
        """
        if self.self_teacher is not None:
            self.self_teacher.follow(model, progress)

    def save(self, folder: Path) -> None:
        """Write what the objective learns or carries; nothing where there is nothing."""
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
            with torch.no_grad():
                for key, value in own.items():
                    value.copy_(saved[key])

    def _own(self) -> dict[str, Tensor]:
        own: dict[int, tuple[str, Tensor]] = {}
        for key, value in self.state_dict(keep_vars=True).items():
            own.setdefault(value.data_ptr(), (key, value))  # tied weights once
        return dict(own.values())

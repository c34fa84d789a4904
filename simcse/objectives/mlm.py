"""Masked language modelling beside a contrastive objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from simcse import distributed
from simcse.config.settings import EncoderConfig, Number
from simcse.encoders.encoder import source_of, transformer_of
from simcse.encoders.mini_batches import Features, mini_batches
from simcse.errors import UserError, first_line
from simcse.objectives.objective import Objective

_IGNORED = -100  # what transformers labels a token that is not to be predicted


class _GivenStates(nn.Module):
    """Stands in for the encoder of a language model: its states are known already."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """The states, whatever is asked."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


class MaskedLanguageModel(Objective):
    """The encoder's own, pre-trained masked-language-model head, in every column of a row.

    As in princeton-nlp/SimCSE; unlike there it reads the texts as they are, without what ``views``
    do to them.

    Args:
        model: The encoder that is trained. It needs one encoder for all texts.
        encoder: Where it came from, and with it the head.
        probability: Share of the tokens that are hidden and asked for.
        mask_token: What takes the place of hidden tokens; ``None`` is the tokenizer's own.
        mini_batch_size: Texts in a forward pass; ``None``: all.

    Raises:
        UserError: The encoder has no masked-language-model head or no mask token.
    """

    name = "mlm"
    formula = "−log P(hidden token | rest of the text)"
    source = "BERT, Devlin et al. 2019, https://arxiv.org/abs/1810.04805"
    heads: ClassVar[Any] = AutoModelForMaskedLM
    kind: ClassVar[str] = "a masked-language-model head"
    usual_mask: ClassVar[str | None] = None
    """Where the tokenizer has none."""

    def __init__(
        self,
        model: SentenceTransformer,
        encoder: EncoderConfig,
        probability: Annotated[Number, Field(gt=0, lt=1)] = 0.15,
        mask_token: str | None = None,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        transformer = transformer_of(model)
        tokenizer = copy.deepcopy(transformer.tokenizer)
        try:
            if mask := mask_token or tokenizer.mask_token or self.usual_mask:
                if mask not in tokenizer.get_vocab():
                    raise ValueError(f"mask_token {mask!r} is no token of its tokenizer")
                tokenizer.mask_token = mask
            self.hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
            full: Any
            full, report = self.heads.from_pretrained(
                source_of(encoder.name, encoder.revision),
                trust_remote_code=encoder.trust_remote_code,
                dtype=transformer.model.dtype,  # else whatever the checkpoint was stored in
                output_loading_info=True,
            )
            if full.config.is_encoder_decoder:
                raise ValueError("it is an encoder with a decoder, whose head is another one")
            own = f"{full.base_model_prefix}."  # weights of the encoder
            if new := sorted(key for key in report["missing_keys"] if not key.startswith(own)):
                raise ValueError(f"its files lack {', '.join(new)}")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"objective.terms: {self.name} needs an encoder with {self.kind} and a mask token; "
                f"{encoder.name}: {first_line(error)}"
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
        self.full = full.float()
        self.mini_batch_size = mini_batch_size

    def token_losses(
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
        keep = self.never_hidden(input_ids, attention_mask)
        hidden, labels = self.hide.torch_mask_tokens(
            input_ids.cpu().clone(), special_tokens_mask=keep.cpu()
        )
        hidden, labels = hidden.to(input_ids.device), labels.to(input_ids.device)
        features = {"input_ids": hidden, "attention_mask": attention_mask, "labels": labels}
        asked = distributed.gather((labels != _IGNORED).sum(dim=1)).sum().clamp(min=1)
        side = self.hide.tokenizer.padding_side
        for _, part in mini_batches(features, self.mini_batch_size, side):
            labels = part.pop("labels")
            total = self.cross_entropy(states(part), labels)
            yield total * distributed.world() / asked

    def never_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Which tokens always stay: special ones and padding; bool, ``(texts, length)``."""
        special = torch.tensor(self.hide.tokenizer.all_special_ids, device=input_ids.device)
        return torch.isin(input_ids, special) | (attention_mask == 0)

    def cross_entropy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Summed over the tokens that have a label, float32."""
        getattr(self.full, self.full.base_model_prefix).states = states.float()
        words = dict.fromkeys(self.tied, self.words().weight.float())
        logits: Tensor = functional_call(self.full, words, (labels,)).logits
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED, reduction="sum"
        )

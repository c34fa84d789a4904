"""Masked next-token prediction, by which a language model gets used to seeing later tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM

from simcse.config.settings import EncoderConfig, Number
from simcse.encoders.encoder import transformer_of
from simcse.encoders.language_models import sees_later_tokens
from simcse.errors import UserError
from simcse.objectives.mlm import MaskedLanguageModel


class MaskedNextToken(MaskedLanguageModel):
    """The language model's own head says a hidden token from the state of the token before it.

    So the head keeps the shift by one token that it was trained with. First step of LLM2Vec, whose
    second one is SimCSE.

    Args:
        model: The encoder that is trained. It needs one encoder for all texts, with attention in
            both directions.
        encoder: Where it came from, and with it the head.
        probability: Share of the tokens that are hidden and asked for.
        mask_token: What takes the place of hidden tokens; ``None`` is the tokenizer's own, or
            ``_`` as in LLM2Vec where it has none.
        mini_batch_size: Texts in a forward pass; ``None``: all.

    Raises:
        UserError: The encoder has no language-model head or no such token, or is causal.
    """

    name = "mntp"
    formula = "−log P(hidden token | text without it), read at the token before"
    source = "LLM2Vec, BehnamGhader et al. 2024, https://arxiv.org/abs/2404.05961"
    heads: ClassVar[Any] = AutoModelForCausalLM
    kind = "a language-model head"
    usual_mask = "_"

    def __init__(
        self,
        model: SentenceTransformer,
        encoder: EncoderConfig,
        probability: Annotated[Number, Field(gt=0, lt=1)] = 0.2,
        mask_token: str | None = None,
        mini_batch_size: int | None = None,
    ) -> None:
        if not sees_later_tokens(transformer_of(model)):
            raise UserError(
                "objective.terms: mntp asks for a token that later ones tell of, which this "
                "encoder does not see; set encoder.attention=bidirectional"
            )
        super().__init__(model, encoder, probability, mask_token, mini_batch_size)

    def never_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As in the base class, and the first token, which none comes before."""
        first = attention_mask.cumsum(dim=1) <= 1
        return super().never_hidden(input_ids, attention_mask) | first

    def cross_entropy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Summed over the tokens that have a label, float32."""
        return super().cross_entropy(states[:, :-1], labels[:, 1:])

"""What a decoder language model needs to serve as an encoder: padding, an end, attention.

Found by asking tokenizer and network, so that no architecture is named here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers.base.modules import Transformer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from simcse.config.settings import Attention
from simcse.data.tokens import special_ends
from simcse.errors import UserError

_TOKENS = 4  # within the window of any attention that has one
_TOLERANCE = 1e-5  # of the largest number of a state


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, *, appends_end: bool) -> None:
    """Give a tokenizer what training and encoding ask for; all of it is saved with the model.

    Padding goes to the right, where it changes nothing: learned positions count from the left, and
    a causal network does not see what comes later.

    Args:
        tokenizer: Of an encoder that does not say how it is pooled.
        appends_end: Whether texts are to end with a special token, which is the last one that is
            pooled; where they have none it is that of the end of a text.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.padding_side != "right":
        # The second is what is saved.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    end, is_fast = tokenizer.eos_token, getattr(tokenizer, "is_fast", False)
    if not (appends_end and is_fast and end is not None):
        return
    starts, ends = special_ends(tokenizer)
    if ends == 0:
        ids = [*tokenizer("a")["input_ids"][:starts], tokenizer.eos_token_id]
        *start, end = tokenizer.convert_ids_to_tokens(ids)
        single = [*start, "$A", end]
        # One template: truncation does not leave room for the tokens of a second one.
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=single,
            pair=[*single, *start, "$B", end],
            special_tokens=list(zip([*start, end], ids, strict=True)),
        )


@torch.no_grad()
def sees_later_tokens(transformer: Transformer) -> bool:
    """Whether changing the last token of a text moves the state of its first, padded or not."""
    training = transformer.training
    transformer.eval()
    moves = []
    for padding in (0, 2):
        ids = torch.arange(_TOKENS + padding).repeat(2, 1)
        ids[1, _TOKENS - 1] += 1
        mask = (torch.arange(_TOKENS + padding) < _TOKENS).long().repeat(2, 1)
        features = {"input_ids": ids, "attention_mask": mask}
        features = {key: value.to(transformer.model.device) for key, value in features.items()}
        one, other = transformer(features)["token_embeddings"][:, 0]
        stays = (one - other).abs().max() <= _TOLERANCE * one.abs().max()
        moves.append(not stays)  # NaN is not causal: it is refused elsewhere
    transformer.train(training)
    return all(moves)


def set_attention(
    label: str, transformer: Transformer, attention: Attention, poolings: Sequence[str]
) -> None:
    """Let tokens see later ones where that is asked for, and see that the pooled token does.

    Args:
        label: Starts every error.
        transformer: In place.
        attention: As ``encoder.attention``.
        poolings: How its states will be pooled.

    Raises:
        UserError: It stays causal, or only its first token is pooled, which sees nothing.
    """
    blind = {"cls", "pooler"} & {*poolings}
    if attention == "bidirectional":
        transformer.model.config.is_causal = False  # transformers makes its masks by this
    elif not blind:
        return
    if sees_later_tokens(transformer):
        return
    if attention == "bidirectional":
        raise UserError(f"{label}: stays causal with attention bidirectional; allowed is own")
    raise UserError(
        f"{label}: the first token, which pooling {blind.pop()} takes, does not see those after it "
        "in this encoder; use last_token, weighted_mean or mean, or encoder.attention=bidirectional"
    )

"""Objectives: pure functions on embeddings, without model, files or processes."""

from simcse.objectives.diagnostics import diagnostics
from simcse.objectives.dino import PrototypeUse, dino, prototype_collapse, prototype_use
from simcse.objectives.distillation import distill_l2, distill_similarity
from simcse.objectives.pairwise import (
    clip,
    decoupled,
    info_nce,
    nt_xent,
    pair_logits,
    same_text_mask,
)
from simcse.objectives.sup_con import sup_con

__all__ = [
    "PrototypeUse",
    "clip",
    "decoupled",
    "diagnostics",
    "dino",
    "distill_l2",
    "distill_similarity",
    "info_nce",
    "nt_xent",
    "pair_logits",
    "prototype_collapse",
    "prototype_use",
    "same_text_mask",
    "sup_con",
]

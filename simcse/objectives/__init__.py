"""What embeddings are trained for: a file for each objective, and their weighted sum.

The functions are pure: embeddings in, a scalar out. The classes carry what is learned and can be
used in any training loop. Others use these names, :mod:`.terms` and :mod:`.weighted_sum`.
"""

from simcse.objectives.clip import Clip, clip
from simcse.objectives.decoupled import Decoupled, decoupled
from simcse.objectives.diagnostics import diagnostics
from simcse.objectives.dino import Dino, PrototypeUse, dino, prototype_collapse, prototype_use
from simcse.objectives.distill_l2 import DistillL2, distill_l2
from simcse.objectives.distill_similarity import DistillSimilarity, distill_similarity
from simcse.objectives.distill_start import DistillStart
from simcse.objectives.info_nce import InfoNCE, info_nce
from simcse.objectives.mlm import MaskedLanguageModel
from simcse.objectives.mntp import MaskedNextToken
from simcse.objectives.nt_xent import NTXent, nt_xent
from simcse.objectives.objective import Batch, Objective, PairObjective
from simcse.objectives.pairwise import guide_mask, pair_logits, same_text_mask
from simcse.objectives.sup_con import SupCon, sup_con
from simcse.objectives.temperature import Temperature

__all__ = [
    "Batch",
    "Clip",
    "Decoupled",
    "Dino",
    "DistillL2",
    "DistillSimilarity",
    "DistillStart",
    "InfoNCE",
    "MaskedLanguageModel",
    "MaskedNextToken",
    "NTXent",
    "Objective",
    "PairObjective",
    "PrototypeUse",
    "SupCon",
    "Temperature",
    "clip",
    "decoupled",
    "diagnostics",
    "dino",
    "distill_l2",
    "distill_similarity",
    "guide_mask",
    "info_nce",
    "nt_xent",
    "pair_logits",
    "prototype_collapse",
    "prototype_use",
    "same_text_mask",
    "sup_con",
]

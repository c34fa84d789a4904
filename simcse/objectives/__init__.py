"""Objectives: pure functions on embeddings, without model, files or processes."""

from simcse.objectives.info_nce import info_nce

__all__ = ["info_nce"]

"""Evaluation: tasks, protocol and scores. It needs an ``encode`` callable and nothing else."""

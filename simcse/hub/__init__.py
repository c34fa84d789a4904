"""The Hugging Face Hub: what is taken from it, and how it fails.

Others use :func:`simcse.hub.snapshots.snapshot` and :mod:`.failures`.
"""

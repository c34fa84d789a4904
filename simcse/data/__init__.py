"""Training text: read, made into rows of token ids once, drawn as batches, turned into views.

Others use :mod:`.readers`, :mod:`.rows`, :mod:`.batching` and :mod:`.views`.
"""

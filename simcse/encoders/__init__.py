"""The model: built, loaded whole with its pooling, saved in the common layout, run fast.

Others use :mod:`.encoder` and :mod:`.loading` for models, :mod:`.encoding` for embeddings.
"""

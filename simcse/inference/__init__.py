"""Using a model: ``SimCSE`` (encode, similarity, search), its index, files of any size.

Others use :class:`simcse.inference.model.SimCSE`.
"""

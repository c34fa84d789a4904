"""A finished run on its way out: the folder to publish, the model card, ONNX, the Hub.

Others use :mod:`.export`, :mod:`.onnx_export`, :mod:`.publish` and :mod:`.prefetch`.
"""

"""The settings of a run and how they are read; nothing heavier than pydantic is imported here.

Others use :mod:`.settings` and :func:`simcse.config.reading.load_config`.
"""

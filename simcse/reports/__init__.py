"""Finished runs, read back: their scores, tables, comparisons, plots, the HTML page.

Others use :class:`simcse.reports.runs.Run`, :mod:`.records`, :mod:`.plots` and :mod:`.compare`.
"""

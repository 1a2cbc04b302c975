"""The reports of ``adntn reproduce``: tables and figures of what is finished, made of the files in a folder alone.

``lines.py`` brings seeds together. ``table3.py`` writes the report of Table 3, by ``sections.py`` (layer groups) and
``drawings.py``; ``whole.py`` that of whole networks, by ``whole_plot.py``; ``expressivity.py`` that of fits, by
``expressivity_plots.py``.
"""

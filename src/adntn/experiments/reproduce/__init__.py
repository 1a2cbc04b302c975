"""The experiments behind the library's claims, as ``adntn reproduce`` runs them: row by row, to be taken up again.

``settings.py`` says what can be asked for, ``rows.py`` what a row is and what it came to, ``run.py`` trains what is not
trained yet. ``table3.py`` and ``whole.py`` list the rows of an experiment each. ``expressivity.py`` trains no network:
it fits generators (``fit_cells.py``) to weights (``fit_targets.py``).
"""

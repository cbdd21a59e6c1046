"""Decision thresholds: rules, what they are tuned for, and the choice among them.

``tuning`` is the way in: it ranks each tag's cells (``ranking``), applies ``rules`` built of
``per_tag``, ``shared`` and ``plug_in`` thresholds, and chooses among them by cross-fit.
"""

"""Long-tail-aware scoring: predictions and a catalogue in, a scorecard with intervals out.

``score`` is the way in: it aligns predictions with labels (``aligned``), measures (``metrics``,
``oracle``, ``ranking``, ``calibration``, ``intervals``) and gives a ``scorecard`` with its
``findings``. ``compare`` ranks several models; ``files`` does both for files.
"""

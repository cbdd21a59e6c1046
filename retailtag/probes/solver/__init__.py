"""Logistic regression of many tags at many strengths at once; knows features and labels only.

``fit`` is the way in, ``torch_solver`` the default solver, built of ``eigenbasis`` (the features),
``problem`` (objective, gradient, curvature), ``preconditioners`` and ``lbfgs`` (directions);
``library_solvers`` wraps scikit-learn and cuML; ``fits`` is what every solver returns.
"""

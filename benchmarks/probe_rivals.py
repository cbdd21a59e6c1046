"""The other ways to fit many logistic regressions, each timed as its users call it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TOLERANCES = tuple(float(f"1e-{k}") for k in range(4, 14))  # from scikit-learn's default down
MAX_ITER = 20_000

Estimator = Callable[..., Any]
Estimators = dict[str, Estimator]


class Timed(NamedTuple):
    """One fit: weights (dim,), intercept and wall seconds."""

    weight: NDArray[np.float64]
    bias: float
    seconds: float


def scikit_learn(**settings: Any) -> Any:
    """scikit-learn's estimator."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**{"max_iter": MAX_ITER, **settings})


def intelex(**settings: Any) -> Any:
    """The same estimator of scikit-learn-intelex.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    from sklearnex.linear_model import LogisticRegression

    return LogisticRegression(**{"max_iter": MAX_ITER, **settings})


def cuml(**settings: Any) -> Any:
    """The same estimator of cuML.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    from cuml.linear_model import LogisticRegression

    # Without this cuML divides the penalty by the number of images, and C means another thing.
    plain = {"penalty_normalized": False, "output_type": "numpy"}
    return LogisticRegression(**{"max_iter": MAX_ITER, **plain, **settings})


def at_hand(device: str) -> tuple[Estimators, list[str]]:
    """Optional rivals that can be imported, and the names of those that cannot."""
    found: Estimators = {}
    absent = []
    wanted = {"scikit-learn-intelex": intelex, **({"cuML": cuml} if device == "cuda" else {})}
    for name, estimator in wanted.items():
        try:
            estimator()
        except ImportError:
            absent.append(name)
        else:
            found[name] = estimator
    return found, absent


def fit_timed(model: Any, X: NDArray[Any], y: NDArray[Any]) -> Timed:
    """Fit one estimator of scikit-learn's interface; what it warns of is checked afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - start
    weight = np.asarray(model.coef_, np.float64).reshape(-1)
    return Timed(weight, float(np.asarray(model.intercept_).reshape(-1)[0]), seconds)


def joint_lbfgs(
    X: NDArray[np.float32], Y: NDArray[np.int8], C: float, device: str, max_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """All tags as one problem: the mean BCE of one linear layer, by `torch.optim.LBFGS`.

    The penalty of each tag is ½‖w‖² / (C·n), so that the optimum is that of the tags apart. It
    starts at zero, and one step length and one stopping rule serve all tags.

    Returns
    -------
    weight, bias : ndarray of float64, shapes (n_tags, dim) and (n_tags,)
    seconds : float
        Copies to and from the device included.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    start = time.perf_counter()
    x, y = torch.from_numpy(X).to(device), torch.from_numpy(Y).to(device).float()
    W = torch.zeros(Y.shape[1], X.shape[1], device=device, requires_grad=True)
    b = torch.zeros(Y.shape[1], device=device, requires_grad=True)
    optimiser = torch.optim.LBFGS([W, b], max_iter=max_iter, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        loss = bce(x @ W.T + b, y, reduction="sum") / len(x) + W.square().sum() / (2 * C * len(x))
        loss.backward()
        return loss

    optimiser.step(closure)
    weight, bias = (p.detach().cpu().numpy().astype(np.float64) for p in (W, b))
    return weight, bias, time.perf_counter() - start

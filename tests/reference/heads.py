"""Slow, obviously right versions of the heads beside logistic regression."""

import numpy as np


def ridge(z, y, penalty):
    """Minimise Σ (w·z + b - y)² + penalty·‖w‖² as one least-squares problem; returns w, b."""
    n, dim = z.shape
    rows = np.hstack([z, np.ones((n, 1))])
    shrink = np.sqrt(penalty) * np.eye(dim, dim + 1)
    x = np.linalg.lstsq(np.vstack([rows, shrink]), np.append(y, np.zeros(dim)), rcond=None)[0]
    return x[:-1], x[-1]


def ridge_left_out(z, y, penalty):
    """Value of every image by the ridge fitted without it."""
    values = []
    for i in range(len(y)):
        w, b = ridge(np.delete(z, i, axis=0), np.delete(y, i), penalty)
        values.append(z[i] @ w + b)
    return np.array(values)


def knn_log_odds(x, bank, labels, k, temperature):
    """Vote of the k most alike training images, one query and tag at a time."""
    mean = bank.astype(np.float64).mean(axis=0)
    out = np.empty((len(x), labels.shape[1]))
    for i, query in enumerate(x - mean):
        cosine = [q @ query / np.linalg.norm(q) / np.linalg.norm(query) for q in bank - mean]
        nearest = np.argsort(-np.array(cosine), kind="stable")[:k]
        for tag in range(labels.shape[1]):
            positives, negatives = (labels[:, tag] == 1).sum(), (labels[:, tag] == 0).sum()
            prevalence = (positives + 0.5) / (positives + negatives + 1)
            yes, no = prevalence, 1 - prevalence
            for j in nearest:
                vote = np.exp((cosine[j] - cosine[nearest[0]]) / temperature)
                yes += vote * (labels[j, tag] == 1)
                no += vote * (labels[j, tag] == 0)
            out[i, tag] = np.log(yes / no)
    return out

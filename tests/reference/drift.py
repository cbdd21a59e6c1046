"""Statistics of two samples as their definitions say, image by image."""

import numpy as np


def mmd2(kernel, group, is_new):
    """Mean kernel within each side less twice that across, over pairs of different groups."""
    sums = {"new": [], "old": [], "across": []}
    for i in range(len(group)):
        for j in range(len(group)):
            if is_new[i] != is_new[j]:
                sums["across"].append(kernel[i, j])
            elif group[i] != group[j]:
                sums["new" if is_new[i] else "old"].append(kernel[i, j])
    return np.mean(sums["new"]) + np.mean(sums["old"]) - 2 * np.mean(sums["across"])


def gap(values, is_new):
    """Largest difference of the two distribution functions at any value."""
    known = ~np.isnan(values)
    old, new = values[known & ~is_new], values[known & is_new]
    if not len(old) or not len(new):
        return 0.0
    return max(abs((old <= v).mean() - (new <= v).mean()) for v in values[known])


def novelty(X, group, is_new, k):
    """Mean -log of the share of old images that lie as far from old ones of other groups."""
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    far = []
    for i in range(len(X)):
        others = [
            np.linalg.norm(scaled[i] - scaled[j])
            for j in range(len(X))
            if not is_new[j] and group[j] != group[i]
        ]
        far.append(sorted(others)[k - 1])
    old = [d for d, new in zip(far, is_new, strict=True) if not new]
    p = [
        (1 + sum(d >= own - 1e-6 for d in old)) / (1 + len(old))
        for own, new in zip(far, is_new, strict=True)
        if new
    ]
    return float(np.mean(-np.log(p)))


def deviance(hits, n, hits_new, n_new):
    """Twice the log likelihood ratio of two rates against one."""

    def log_likelihood(k, size, rate):
        found = k * np.log(rate) if k else 0.0
        return found + ((size - k) * np.log(1 - rate) if size > k else 0.0)

    rate = (hits + hits_new) / (n + n_new)
    apart = log_likelihood(hits, n, hits / n) + log_likelihood(hits_new, n_new, hits_new / n_new)
    return 2 * (apart - log_likelihood(hits + hits_new, n + n_new, rate))


def adjusted_p(statistics):
    """Step-down maximum: the most extreme column against the maximum of all, and so on."""
    order = np.argsort(-statistics[0], kind="stable")
    found, so_far = np.empty(len(order)), 0.0
    for place, column in enumerate(order):
        largest = statistics[:, order[place:]].max(axis=1)
        so_far = max(so_far, float((largest >= statistics[0, column]).mean()))
        found[column] = so_far
    return found

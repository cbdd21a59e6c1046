"""Samples drawn from known distributions, and a model with few tags."""

import numpy as np
import pytest

from retailtag.backbones.factory import load_backbone
from retailtag.probes.artefact import Probe
from retailtag.tagger.drift.properties import PROPERTIES
from retailtag.tagger.drift.sample import Sample
from retailtag.tagger.tagger import Tagger

TAGS = tuple(f"tag {k}" for k in range(12))
RATES = 0.6 * 0.75 ** np.arange(len(TAGS))


def drawn(n_groups, seed, *, prefix="new", shift=0.0, rate=None, novel=0.0, **properties):
    """A sample of products with two images each.

    `shift` moves three of the coordinates, `novel` a share of the products in all of them, `rate`
    is that of the first tag, and properties are moved by their name.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), 2)
    n = len(group)
    rates = RATES.copy()
    rates[0] = RATES[0] if rate is None else rate
    given = (rng.random((n_groups, len(TAGS))) < rates)[group]
    X = rng.normal(size=(n_groups, 16))[group] + 0.4 * rng.normal(size=(n, 16))
    X[:, 0] += 3 * given[:, 0]  # the first tag can be seen
    X[:, 3:6] += shift
    X[group < novel * n_groups] += 3
    figures = rng.normal(size=(n, len(PROPERTIES)))
    for name, moved in properties.items():
        figures[:, PROPERTIES.index(name)] += moved
    names = np.array([f"{prefix}-{i}" for i in range(n)])
    return Sample(
        embeddings=X.astype(np.float32),
        given=given,
        confidences=np.stack([X[:, 0], X[:, 1], given.sum(axis=1)], axis=1),
        properties=figures,
        kinds=np.full(n, "JPEG"),
        group=np.array([f"{prefix}-{g}" for g in group]),
        names=names,
        digests=np.zeros(n, np.uint64),
        has_groups=True,
    )


@pytest.fixture(scope="session")
def draw():
    return drawn


@pytest.fixture(scope="session")
def drift_tagger() -> Tagger:
    """A model of random weights, two tags that about half of all images get."""
    backbone = load_backbone("demo:cnn", random_weights=True)
    rng = np.random.default_rng(0)
    head = Probe(
        ("red", "blue", "<b>never</b>"),
        rng.normal(size=(3, backbone.dim)).astype(np.float32),
        np.zeros(3, np.float32),
        np.array([0, 0, np.inf], np.float32),
        np.ones(3),
        facts={"thresholds": {"rule": "per-tag", "objective": "f1"}},
    )
    return Tagger((backbone,), head, "probe")

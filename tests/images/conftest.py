"""The corpus of odd and broken image files."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_corpus():
    """The function of `corpus.py` that makes all classes of odd files from a seed."""
    spec = importlib.util.spec_from_file_location(
        "image_corpus", Path(__file__).with_name("corpus.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.classes


@pytest.fixture(scope="session")
def corpus(make_corpus):
    return make_corpus()

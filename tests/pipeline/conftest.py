import pytest

from retailtag.backbones import load_backbone
from retailtag.pipeline.extract import extract


@pytest.fixture(scope="session")
def tiny_store(tiny, tmp_path_factory):
    """Embeddings of the small world by demo:cnn; read only."""
    return extract(tiny, load_backbone("demo:cnn"), tmp_path_factory.mktemp("features")).store

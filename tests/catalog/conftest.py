"""Small images in every container, and a catalogue made of them."""

import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(shade: int = 0, kind: str = "JPEG", size: tuple[int, int] = (48, 40), **save) -> bytes:
    """A picture with a gradient whose red is `shade`, encoded."""
    x = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = shade, x
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **save)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture():
    return encoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RETAILTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder with four images under images/ and no manifest."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for i in range(4):
        (folder / "images" / f"{i}.jpg").write_bytes(encoded(40 * i))
    return folder


@pytest.fixture
def pack():
    """Put a folder's images into an archive beside the manifest and delete the files."""

    def move(folder: Path, name: str) -> Path:
        archive = folder / name
        files = sorted((folder / "images").iterdir())
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
                for file in files:
                    z.write(file, f"images/{file.name}")
        else:
            mode = "w:" + {".tar": "", "r.xz": "xz", "r.gz": "gz", ".bz2": "bz2"}[name[-4:]]
            with tarfile.open(archive, mode) as t:
                for file in files:
                    t.add(file, f"./images/{file.name}")
        for file in files:
            file.unlink()
        return archive

    return move


@pytest.fixture
def manifest(shop):
    """Write a manifest of the given lines into the shop."""

    def write(*lines: str, name: str = "catalogue.csv") -> Path:
        path = shop / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


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

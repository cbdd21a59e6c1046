"""What every test may use: the reference implementations and the real data, where present."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
FASHION = SHARED / "data" / "fashion"


def _load_reference() -> None:
    """Make `tests/reference/*.py` importable as `reference.*` without packages in tests."""
    for path in sorted((ROOT / "tests" / "reference").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"reference_{path.stem}"] = module
        spec.loader.exec_module(module)


_load_reference()


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Folder of the real catalogue; the test is skipped where it is absent."""
    if not (FASHION / "catalogue.csv").exists():
        pytest.skip("the real catalogue (../shared/data/fashion) is not on this machine")
    return FASHION

"""Find which pretrained backbone, and linear probe or fine-tune, for a long-tailed tag taxonomy.

The functions below are what the commands of the same names call. They are loaded on first use, so
that ``import retailtag`` needs neither NumPy nor PyTorch.

Examples
--------
>>> import retailtag as rt
>>> rt.ProbeSettings(folds=3).folds
3
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retailtag.version import __version__

if TYPE_CHECKING:
    from retailtag.api import (
        audit,
        bakeoff,
        compare,
        drift,
        evaluate_similar,
        export,
        export_features,
        extract,
        finetune,
        fit_probes,
        import_features,
        latency,
        load,
        predict,
        predict_batches,
        probe,
        read_catalog,
        score,
        similar,
        split,
        tune,
    )
    from retailtag.catalog.catalog import Catalog
    from retailtag.settings import (
        BakeoffSettings,
        CatalogSettings,
        ComputeSettings,
        DriftSettings,
        ExportSettings,
        ExtractSettings,
        FinetuneSettings,
        LatencySettings,
        PredictSettings,
        ProbeSettings,
        ReadingSettings,
        ScoreSettings,
        SimilarSettings,
    )

__all__ = [
    "BakeoffSettings",
    "Catalog",
    "CatalogSettings",
    "ComputeSettings",
    "DriftSettings",
    "ExportSettings",
    "ExtractSettings",
    "FinetuneSettings",
    "LatencySettings",
    "PredictSettings",
    "ProbeSettings",
    "ReadingSettings",
    "ScoreSettings",
    "SimilarSettings",
    "__version__",
    "audit",
    "bakeoff",
    "compare",
    "drift",
    "evaluate_similar",
    "export",
    "export_features",
    "extract",
    "finetune",
    "fit_probes",
    "import_features",
    "latency",
    "load",
    "predict",
    "predict_batches",
    "probe",
    "read_catalog",
    "score",
    "similar",
    "split",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'retailtag' has no attribute {name!r}")
    home = "retailtag.settings" if name.endswith("Settings") else "retailtag.api"
    home = "retailtag.catalog.catalog" if name == "Catalog" else home
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return __all__

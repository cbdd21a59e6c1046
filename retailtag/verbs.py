"""Which settings each verb uses, and how they are put together from files, options and defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from retailtag.errors import UsageError
from retailtag.fields import Section, flag, options_of
from retailtag.settings import (
    SECTIONS,
    BakeoffSettings,
    build,
    keys,
    option_of,
    values_of,
)

# How a catalogue's rows and images are found; frequency groups are a matter of some verbs only.
LAYOUT = tuple(
    k for k in keys() if k.startswith("catalog.") and k not in ("catalog.path", "catalog.cutoffs")
)
CATALOG = (*LAYOUT, "catalog.cutoffs")
READING = ("reading.max_pixels", "reading.max_bytes", "reading.allow_truncated")
COMPUTE = ("compute.device", "compute.features", "compute.weights")
STORED = ("extract.dtype", "extract.engine", "extract.precision")
SCORE = ("score.split", "score.replicates", "score.allow_missing", "score.assign", "score.seed")
PROBE = tuple(k for k in keys() if k.startswith("probe."))
FINETUNE = tuple(k for k in keys() if k.startswith("finetune."))
SERVE = tuple(k for k in keys() if k.startswith("serve."))
DECIDE = tuple(k for k in keys() if k.startswith("decide."))

USES: dict[str, tuple[str, ...]] = {
    "extract": (
        *("backbones", *LAYOUT, *READING, *COMPUTE, "compute.workers"),
        *(*STORED, "extract.batch_size"),
    ),
    "probe": (
        *("backbones", "out", *CATALOG, *READING[1:], *COMPUTE),
        *(*STORED, *PROBE),
    ),
    "finetune": (
        *("backbones", "out", *CATALOG, *READING, *COMPUTE, "compute.workers"),
        *(*STORED, *FINETUNE),
    ),
    "bakeoff": (
        *("backbones", "strategies", "out", *CATALOG, *READING, *COMPUTE, "compute.workers"),
        *(*STORED, "extract.batch_size", *PROBE, *FINETUNE),
        *("score.replicates", "score.assign", "score.seed", "names", "no_images", *DECIDE),
    ),
    "score": ("catalog.path", *CATALOG, *SCORE, "names"),
    "compare": (
        *("catalog.path", *CATALOG, *SCORE),
        *("score.permutations", "names"),
    ),
    "latency": (
        *("catalog.path", *LAYOUT, *READING, "compute.device", "compute.weights"),
        *("latency.engines", "latency.batches", "decide.price_per_hour"),
    ),
    "check": (*CATALOG, *READING[:2], "compute.workers"),
    "audit": ("catalog.path", *CATALOG),
    "tune": ("catalog.path", *CATALOG, "score.seed"),
    "export": (
        *("export.format", "export.with_preprocessing", "export.int8"),
        *("catalog.path", *CATALOG, "compute.device", "compute.weights"),
        *("score.assign", "score.seed"),
    ),
    "load": ("compute.device", "compute.weights", "catalog.one_of", "score.assign"),
    "predict": (
        *("predict.format", "predict.top_k", "predict.min_probability"),
        "predict.operating_point",
        *("compute.device", "compute.weights", "catalog.one_of", "score.assign"),
        *("catalog.images", "catalog.path_column", "catalog.id_column", "catalog.allow_root"),
        *(*READING, "compute.workers", "extract.batch_size"),
    ),
    "serve": (
        *("serve.host", "serve.port", "serve.api_key_file", "predict.operating_point"),
        *("compute.device", "compute.weights", "catalog.one_of", "score.assign"),
        *("reading.max_pixels", "compute.workers", *SERVE[3:]),
    ),
    "drift": (
        *LAYOUT,
        *READING,
        *("compute.device", "compute.weights", "compute.workers", "score.assign"),
        *(k for k in keys() if k.startswith("drift.")),
    ),
    "similar": (
        *("backbones", "similar.top", "similar.rerank", "score.split", *CATALOG, *READING),
        *(*COMPUTE, "compute.workers", *STORED),
    ),
    "split": (*LAYOUT, "compute.workers", "probe.seed"),
    "features": ("compute.features",),
    "verify": (
        *("catalog.path", *LAYOUT, "reading.max_pixels", *COMPUTE, "compute.workers"),
        "probe.seed",
    ),
    "gc": (*LAYOUT, "compute.features", "compute.workers"),
    "merge": (),
    "import": ("catalog.path", *LAYOUT, "compute.features", "compute.workers"),
    "vectors": ("backbones", *LAYOUT, *READING[1:], *COMPUTE, *STORED),
    "init": (),
    "demo": ("probe.seed",),
    "models": (),
    "models-verify": ("compute.device",),
}
"""Settings of each verb, in the order of its help."""


RARE = {
    "bakeoff": (
        "--images",
        "--weights",
        "--batch-size",
        "--assign",
        "--folds",
        "--blocks",
        "--lr",
        "--augment",
    ),
    "finetune": ("--images", "--features", "--weights", "--batch-size"),
    "export": ("--attributes", "--weights"),
    "drift": ("--attributes", "--images", "--assign", "--weights"),
    "similar": ("--attributes", "--images", "--weights"),
}
"""Options that are advanced in a verb although they are basic elsewhere."""


def flags_of(verb: str) -> dict[str, tuple[str, ...]]:
    """Settings of a verb by the option that gives them: several sections may share one.

    Examples
    --------
    >>> flags_of("bakeoff")["--seed"]
    ('probe.seed', 'finetune.seed', 'score.seed')
    """
    found: dict[str, tuple[str, ...]] = {}
    for key in USES[verb]:
        name = (
            "--catalogue" if key == "catalog.path" else flag(key.rpartition(".")[2], option_of(key))
        )
        found[name] = (*found.get(name, ()), key)
    return found


def resolve(
    verb: str,
    settings: BakeoffSettings | Section | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    file: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> tuple[BakeoffSettings, set[str]]:
    """Settings of one call: options over ``--set`` over the file over the environment.

    Parameters
    ----------
    verb : str
    settings : BakeoffSettings or one of its sections, optional
        What to start from instead of the defaults.
    options : mapping, optional
        Values by option name with underscores, such as ``sweep_C``; None means not given.
    file : mapping, optional
        Values by dotted key; see `retailtag.settings_file.read_settings`.
    sets : sequence of str
        Each ``KEY=VALUE`` with a dotted key.

    Returns
    -------
    settings : BakeoffSettings
    given : set of str
        Keys whose value somebody gave, other than by `settings`.

    Raises
    ------
    UsageError
        If a name is unknown or a value cannot be used.
    """
    start = _given_by(settings)
    # later sources overwrite earlier ones: environment, file, --set, options
    values: dict[str, Any] = {}
    for key in keys():
        variable = option_of(key).environment
        if variable and key not in start and os.environ.get(variable):
            values[key] = os.environ[variable]
    values.update(file or {})
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text} is not KEY=VALUE, such as finetune.layer_decay=0.8.")
        values[key.strip()] = value.strip()
    values.update(_by_key(verb, options or {}))
    return build({**start, **values}), set(values)


def _given_by(settings: BakeoffSettings | Section | None) -> dict[str, Any]:
    """Values of whole settings, or of one section, by dotted key."""
    if settings is None:
        return {}
    if isinstance(settings, BakeoffSettings):
        return dict(values_of(settings))
    for section, kind in SECTIONS.items():
        if isinstance(settings, kind):
            return {f"{section}.{name}": getattr(settings, name) for name in options_of(kind)}
    raise UsageError(
        f"settings takes BakeoffSettings or one of its sections, not {type(settings).__name__}."
    )


def _by_key(verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a verb by the dotted keys that they give."""
    by_name = {name[2:].replace("-", "_"): own for name, own in flags_of(verb).items()}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(by_name))}."
            raise UsageError(f"{name} is not an option of {verb}; {hint}")
        if value is not None:
            values |= dict.fromkeys(by_name[name], value)
    return values

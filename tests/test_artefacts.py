"""Stored models: bound to their tensors, and checked in every field and number when read.

Models are written, then changed in one place by a table of changes, with digests that fit, so that
the check of that place is what refuses them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retailtag.artefacts import bound_header
from retailtag.errors import ArtefactError, DataError
from retailtag.files import read_json, write_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnBank, KnnVote

RNG = np.random.default_rng(0)
PROBE = Probe(
    tags=("a", "b"),
    weight=RNG.standard_normal((2, 3)).astype(np.float32),
    bias=np.zeros(2, np.float32),
    thresholds=np.array([0.5, np.inf], np.float32),
    C=np.array([0.1, 1.0]),
    facts={
        "backbone": "demo:cnn",
        "catalog_digest": "c",
        "exclusive": [],
        "features": "f",
        "settings": {},
        "stored_as": {"engine": "eager-float32", "dtype": "float16"},
        "threshold_f1": {},
        "thresholds": {"rule": "group"},
    },
    scale="l2",
)
BANK = KnnBank.build(
    RNG.standard_normal((4, 3)).astype(np.float32), np.array([[1, 0], [0, 1], [-1, 1], [0, 0]])
)
VOTE = replace(PROBE, weight=PROBE.weight[:, :0], head="knn", vote=KnnVote(BANK, np.array([1, 3])))
CHECKPOINT = Checkpoint(
    "demo:cnn",
    {"a.b": torch.arange(4.0), "n": torch.tensor(3)},
    ("a", "b"),
    PROBE.weight,
    PROBE.bias,
    PROBE.thresholds,
    {**PROBE.facts, "best_epoch": 2},
)
MODELS = {"probe": PROBE, "knn": VOTE, "checkpoint": CHECKPOINT}
FILES = {
    "probe": ("probe.json", ("probe.safetensors",)),
    "knn": ("probe.json", ("probe.safetensors", "knn.safetensors")),
    "checkpoint": ("checkpoint.json", ("checkpoint.safetensors",)),
}
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I8": np.int8}


def _equal(one, other):
    """Whether two models are equal, number by number."""
    if type(one) is not type(other):
        return False
    names = ("weight", "bias", "thresholds")
    state = getattr(one, "state", {})
    back = getattr(other, "state", {})
    votes = getattr(one, "vote", None), getattr(other, "vote", None)
    banks = [v.bank.directions if v else np.zeros(0) for v in votes]
    return (
        all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)
        and state.keys() == back.keys()
        and all(torch.equal(state[n], back[n]) for n in state)
        and np.array_equal(*banks)
        and (one.tags, one.facts) == (other.tags, other.facts)
    )


def _read_tensors(path):
    """Tensors of a file as (dtype, shape, bytes), so that anything can be written back."""
    body = path.read_bytes()
    start = 8 + int.from_bytes(body[:8], "little")
    layout = json.loads(body[8:start])
    layout.pop("__metadata__", None)
    return {
        name: (
            t["dtype"],
            t["shape"],
            body[start + t["data_offsets"][0] : start + t["data_offsets"][1]],
        )
        for name, t in layout.items()
    }


def _write_tensors(path, tensors):
    layout = {}
    end = 0
    for name, (dtype, shape, body) in tensors.items():
        layout[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(body)]}
        end += len(body)
    head = json.dumps(layout).encode()
    bodies = b"".join(body for *_, body in tensors.values())
    path.write_bytes(len(head).to_bytes(8, "little") + head + bodies)


def _bind(folder, kind):
    """Make the digests fit the files."""
    header, files = FILES[kind]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    value = {**read_json(folder / header), "files": digests}
    write_json(folder / header, bound_header(value, header))


def _array(tensor):
    dtype, shape, body = tensor
    return np.frombuffer(body, DTYPES[dtype]).reshape(shape).copy()


def _tensor(dtype, array):
    with np.errstate(invalid="ignore"):  # infinity as an integer
        array = np.array(array, DTYPES[dtype], order="C")
    return dtype, list(array.shape), array.tobytes()


def _with(value):
    """Change of one number."""

    def change(tensor):
        array = _array(tensor)
        array[(-1,) * array.ndim] = value
        return _tensor(tensor[0], array)

    return change


def _as(dtype):
    return lambda tensor: _tensor(dtype, _array(tensor))


def _shaped(how):
    return lambda tensor: _tensor(tensor[0], how(_array(tensor)))


CHANGES = {
    "absent": lambda tensor: None,
    "a row less": _shaped(lambda a: a[:-1]),
    "a row more": _shaped(lambda a: np.concatenate([a, a[:1]])),
    "one number": _shaped(lambda a: a.ravel()[:1]),
    "empty": _shaped(lambda a: a[:0]),
    "an axis more": _shaped(lambda a: a[None]),
    "an axis less": _shaped(lambda a: a.sum(axis=-1)),
    "BF16": lambda tensor: ("BF16", tensor[1], bytes(2 * math.prod(tensor[1]))),
    "BOOL": lambda tensor: ("BOOL", tensor[1], bytes(math.prod(tensor[1]))),
    **{dtype: _as(dtype) for dtype in DTYPES},
    **{str(value): _with(value) for value in (math.nan, math.inf, -math.inf)},
}
OWN = {
    "C": {"zero": _with(0.0), "negative": _with(-1.0)},
    "labels": {"2": _with(2), "-2": _with(-2), "-128": _with(-128)},
}
# The first tensor with an axis says how long it is; the next one is found to differ.
ROWS = ("a row less", "a row more", "one number")
NAMED = {("mean", how): "directions" for how in ROWS} | {
    ("directions", how): "labels" for how in ROWS[:2]
}
TENSORS = {
    ("probe", "probe.safetensors"): ("weight", "bias", "thresholds", "C"),
    ("knn", "knn.safetensors"): ("mean", "directions", "labels"),
    ("checkpoint", "checkpoint.safetensors"): ("head.weight", "head.bias", "head.thresholds"),
}
CASES = [
    pytest.param(kind, file, name, how, id=f"{name}-{how}-{kind}")
    for (kind, file), names in TENSORS.items()
    for name in names
    for how in {**CHANGES, **OWN.get(name, {})}
]


def _is_one_sentence(error, *parts):
    text = str(error)
    assert error.exit_code == 4
    assert "\n" not in text
    assert text.endswith(" again.")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(("kind", "file", "name", "how"), CASES)
def test_a_changed_tensor_is_refused_by_name(kind, file, name, how, tmp_path):
    saved, bare = MODELS[kind], name.removeprefix("head.")
    saved.save(tmp_path)
    tensors = _read_tensors(tmp_path / file)
    if how == tensors[name][0] or (bare == "labels" and how in ("nan", "inf", "-inf")):
        return  # nothing is changed, or an integer cannot be that
    changed = {**CHANGES, **OWN.get(name, {})}[how](tensors[name])
    tensors = {n: changed if n == name else t for n, t in tensors.items()}
    _write_tensors(tmp_path / file, {n: t for n, t in tensors.items() if t is not None})
    _bind(tmp_path, kind)
    if (bare, how) == ("thresholds", "inf"):  # a tag that is never given
        assert _equal(saved, type(saved).load(tmp_path))
        return
    with pytest.raises(ArtefactError) as refused:
        type(saved).load(tmp_path)
    _is_one_sentence(refused.value, file, NAMED.get((bare, how), name))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_backbone_that_is_not_finite_is_refused(value, tmp_path):
    CHECKPOINT.save(tmp_path)
    tensors = _read_tensors(tmp_path / "checkpoint.safetensors")
    tensors["backbone.a.b"] = _with(value)(tensors["backbone.a.b"])
    _write_tensors(tmp_path / "checkpoint.safetensors", tensors)
    _bind(tmp_path, "checkpoint")
    with pytest.raises(ArtefactError) as refused:
        Checkpoint.load(tmp_path)
    _is_one_sentence(refused.value, "backbone.a.b[3]", str(value), "not finite")


@pytest.mark.parametrize(("kind", "file"), list(TENSORS))
def test_an_unknown_tensor_is_refused_by_name(kind, file, tmp_path):
    MODELS[kind].save(tmp_path)
    tensors = _read_tensors(tmp_path / file)
    _write_tensors(tmp_path / file, {**tensors, "more": tensors[next(iter(tensors))]})
    _bind(tmp_path, kind)
    with pytest.raises(ArtefactError) as refused:
        type(MODELS[kind]).load(tmp_path)
    _is_one_sentence(refused.value, file, "'more'")


BODIES = {
    "empty": b"",
    "text": b"no tensors",
    "a long head": (2**63).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "nested": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no bytes": (50).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'[:50],
    "negative": b'9\0\0\0\0\0\0\0{"weight":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("how", [*BODIES, "cut"])
@pytest.mark.parametrize(("kind", "file"), list(TENSORS))
def test_a_file_that_is_no_tensors_is_refused(kind, file, how, tmp_path):
    MODELS[kind].save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(BODIES.get(how, whole[:-4]))
    _bind(tmp_path, kind)
    with pytest.raises(ArtefactError) as refused:
        type(MODELS[kind]).load(tmp_path)
    _is_one_sentence(refused.value, file)


# Values that hardly any field takes; what each field does take is taken out below.
WRONG = {
    "absent": ...,
    "null": None,
    "true": True,
    "number": 9,
    "fraction": 0.5,
    "huge": 10**400,
    "empty text": "",
    "unknown text": "nothing",
    "list": [],
    "numbers": [1, 2],
    "one text": ["a"],
    "twice": ["a", "a"],
    "empty texts": ["a", ""],
    "lists": [["a"], ["b"]],
    "object": {},
    "rules": {"rule": 3, "engine": 1, "dtype": "float16"},
}
RIGHT = {
    "backbone": ("unknown text",),
    "facts": ("object", "rules"),
    "facts.exclusive": ("absent", "null", "list", "one text"),
    "knn.counts": ("numbers",),
    "knn.temperature": ("number", "fraction"),
    "facts.settings": ("absent", "object", "rules"),
    "facts.threshold_f1": ("absent", "object", "rules"),
    "facts.thresholds": ("absent", "object"),
    "facts.stored_as": ("absent",),
    **{f"facts.{n}": ("absent", "unknown text") for n in ("backbone", "features")},
    "facts.catalog_digest": ("absent", "unknown text"),
}
HEADERS = {
    "probe": ("format", "files", "tags", "scale", "head", "facts"),
    "knn": ("head", "knn", "knn.counts", "knn.temperature"),
    "checkpoint": ("format", "files", "backbone", "tags", "facts"),
}
# Fields whose change is seen by another field or tensor.
FIELD_NAMED = {
    ("files", "object"): "not written together",
    ("tags", "one text"): "weight",
}
HEADERS["probe"] += tuple(f"facts.{name}" for name in PROBE.facts)


def _set(value, place, to):
    """A copy of a JSON object with one field, at a dotted place, replaced or left out."""
    first, _, rest = place.partition(".")
    if rest:
        return {**value, first: _set(value[first], rest, to)}
    return {n: v for n, v in {**value, first: to}.items() if v is not ...}


@pytest.mark.parametrize("how", list(WRONG))
@pytest.mark.parametrize(("kind", "place"), [(k, p) for k, ps in HEADERS.items() for p in ps])
def test_a_changed_field_is_refused_by_name(kind, place, how, tmp_path):
    saved, path = MODELS[kind], tmp_path / FILES[kind][0]
    saved.save(tmp_path)
    header = _set(read_json(path), place, WRONG[how])
    with suppress(ValueError, LookupError, TypeError, AttributeError):  # no digest of such a header
        header = bound_header(header, path.name)
    path.write_text(json.dumps(header), encoding="utf-8")
    if how in RIGHT.get(place, ()):
        assert _is_same(saved, type(saved).load(tmp_path), place)
        return
    with pytest.raises(ArtefactError) as refused:
        type(saved).load(tmp_path)
    name = FIELD_NAMED.get((place, how), place.removeprefix("knn."))
    _is_one_sentence(refused.value, "safetensors" if name == "weight" else path.name, name)


def _is_same(saved, loaded, place):
    return _equal(saved, loaded) or place.startswith(("facts", "backbone", "knn"))


def test_an_unknown_field_and_too_few_counts_are_refused(tmp_path):
    VOTE.save(tmp_path)
    header = read_json(tmp_path / "probe.json")
    for place, value, part in (("more", 1, "'more'"), ("knn.counts", [1], "1 numbers for 2 tags")):
        changed = bound_header(_set(header, place, value), "probe.json")
        write_json(tmp_path / "probe.json", changed)
        with pytest.raises(ArtefactError) as refused:
            Probe.load(tmp_path)
        _is_one_sentence(refused.value, "probe.json", part)


@pytest.mark.parametrize(
    "text", ["", "no", "[]", "3", "{", '{"a":' * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}']
)
@pytest.mark.parametrize("kind", ["probe", "checkpoint"])
def test_a_header_that_is_no_object_is_refused(kind, text, tmp_path):
    MODELS[kind].save(tmp_path)
    (tmp_path / FILES[kind][0]).write_text(text)
    with pytest.raises(ArtefactError) as refused:
        type(MODELS[kind]).load(tmp_path)
    _is_one_sentence(refused.value, FILES[kind][0])


def test_a_fact_of_other_content_is_kept(tmp_path):
    replace(PROBE, facts={"own": [1, {"a": None}]}).save(tmp_path)
    assert Probe.load(tmp_path).facts == {"own": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("place", "value"),
    [("tags", ["a", "c"]), ("scale", "none"), ("facts.more", 1), ("facts.stored_as.engine", "x"),
     ("files.more", "0")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["probe", "checkpoint"])
def test_an_altered_header_is_refused_though_it_follows_all_rules(kind, place, value, tmp_path):
    if place == "scale" and kind == "checkpoint":
        place, value = "backbone", "demo:clip"
    MODELS[kind].save(tmp_path)
    path = tmp_path / FILES[kind][0]
    path.write_text(json.dumps(_set(read_json(path), place, value)))
    with pytest.raises(ArtefactError) as refused:
        type(MODELS[kind]).load(tmp_path)
    _is_one_sentence(refused.value, path.name, "was altered or damaged")


# Two fits, one after the other, into one folder


def _as_before(folder, kind, version):
    """Turn a stored model into what an earlier version wrote: without digests."""
    header, files = FILES[kind]
    for name in files:
        _write_tensors(folder / name, _read_tensors(folder / name))
    value = {**read_json(folder / header), "format": version}
    del value["files"]
    if (kind, version) == ("probe", 1):
        del value["scale"], value["head"]
    write_json(folder / header, value)


@pytest.mark.parametrize(
    ("kind", "version"),
    [("probe", 1), ("probe", 2), ("probe", 3), ("knn", 3), ("checkpoint", 1)],
)
def test_models_of_earlier_versions_open(kind, version, tmp_path):
    MODELS[kind].save(tmp_path)
    _as_before(tmp_path, kind, version)
    opened = type(MODELS[kind]).load(tmp_path)
    assert _equal(MODELS[kind], opened)
    if kind == "probe":
        assert opened.scale == ("standardise" if version == 1 else PROBE.scale)


def _refitted(model):
    """A later fit, whose tensors have the same shapes."""
    later = replace(model, bias=model.bias + 1, facts={**model.facts, "features": "later"})
    if model is not VOTE:
        return later
    bank = replace(BANK, directions=-BANK.directions)
    return replace(later, vote=replace(model.vote, bank=bank))


class Killed(BaseException):
    """Stands for a kill: nothing that follows is done."""


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [(a, b) for a in ("probe", "knn") for b in ("probe", "knn")] + [("checkpoint", "checkpoint")],
)
def test_a_kill_between_two_files_never_mixes_two_fits(old, new, earlier, tmp_path, monkeypatch):
    first, second = MODELS[old], _refitted(MODELS[new])
    rename = Path.replace
    for at in range(len(FILES[new][1]) + 1):
        folder = tmp_path / str(at)
        first.save(folder)
        if earlier:
            _as_before(folder, old, 1 if old == "checkpoint" else 3)
        done = 0

        def killed(source, target, at=at):
            nonlocal done
            if done == at:
                raise Killed
            done += 1
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            second.save(folder)
        monkeypatch.setattr(Path, "replace", rename)
        if at == 0 or ((old, new, at) == ("probe", "knn", 1)):  # the bank is not read
            assert _equal(type(first).load(folder), first)
        else:
            with pytest.raises(ArtefactError, match="not written together") as refused:
                type(first).load(folder)
            _is_one_sentence(refused.value, FILES[new][0], ".safetensors")
        second.save(folder)  # the same command again
        assert _equal(type(second).load(folder), second)


def test_a_full_disk_leaves_the_earlier_fit(tmp_path, monkeypatch):
    sync = os.fsync
    VOTE.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for at in range(3):
        calls = iter(range(99))

        def full(fd, at=at, calls=calls):
            if next(calls) == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(fd)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            _refitted(VOTE).save(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", list(FILES))
def test_a_missing_file_of_tensors_is_named(kind, tmp_path):
    for name in FILES[kind][1]:
        MODELS[kind].save(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ArtefactError) as refused:
            type(MODELS[kind]).load(tmp_path)
        _is_one_sentence(refused.value, name)
    (tmp_path / FILES[kind][0]).unlink()
    with pytest.raises(DataError, match="does not exist"):
        type(MODELS[kind]).load(tmp_path)

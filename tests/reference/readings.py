"""Every file format that retailtag reads, with a plain second reading to judge mutants by.

A second reading is short and strict: it parses with the format's own library, raises on whatever
is not exactly as `make` writes it, and knows of the notations that docs/data.md allows only those
that a mutation can produce.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from reference_attack import Format, Refusal
from reference_mutations import (
    of_arrays,
    of_bytes,
    of_cells,
    of_json,
    of_json_lines,
    of_npz,
    of_parquet,
    packed,
    parquet,
    tried,
)

from retailtag.catalog.readers import read_catalog
from retailtag.predictions import Predictions
from retailtag.scoring.foreign import is_foreign, read_foreign, read_thresholds
from retailtag.store import Absent, FeatureSpec, FeatureStore
from retailtag.store.inventory import describe, survey
from retailtag.store.segment import HEADER_BYTES


def need(holds: bool, what: str = "") -> None:
    """Raise `Refusal` unless a condition of a sound file holds."""
    if not holds:
        raise Refusal(what)


def is_names(values: Any) -> bool:
    """Whether these are texts without repetition, none of them empty."""
    texts = all(isinstance(v, str) and v and "\0" not in v for v in values)
    return texts and len({*values}) == len(values)


def strict_json(data: bytes) -> Any:
    """JSON of RFC 8259: UTF-8, whole characters, no key twice, no NaN."""

    def one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise Refusal(name)

    value = json.loads(data.decode(), object_pairs_hook=one_of_each, parse_constant=no_constant)
    need(bool(json.dumps(value, ensure_ascii=False).encode()))  # raises on half of a character
    return value


# Feature stores

DIM = 4
SPEC = FeatureSpec("demo:none", "ab" * 32, '{"a": 1}', "avg", DIM, '{"size": [8, 8]}')
IDS = tuple(f"image-{i}" for i in range(6))
X = np.random.default_rng(0).normal(size=(len(IDS), DIM)).astype(np.float32)


def make_store(folder: Path) -> None:
    store = FeatureStore.create_or_open(folder, SPEC)
    hashes = [hashlib.sha256(i.encode()).hexdigest() for i in IDS]
    for at in (slice(0, 4), slice(4, 6)):
        name = store.append(IDS[at], hashes[at], X[at], [Absent(f"gone-{at.start}", None, "cut")])
        run = {"started": "2026-11-29", "versions": {"torch": "2.6"}}
        store.journal.append({"kind": "shard", "shard": name, "seconds": 0.5, "run": run})
    (store.path / ".lock").unlink()


def read_store(folder: Path) -> Any:
    """What a probe reads, and that `features ls` goes on past a damaged store."""
    survey(folder)
    (path,) = folder.iterdir()
    store = FeatureStore.open(path, SPEC)
    return store.known(), store.absent(), store.load(IDS).X


def read_journal(folder: Path) -> Any:
    """Whether the store and its times, which are a record, can be told."""
    (path,) = folder.iterdir()
    store = FeatureStore.open(path)
    described = json.dumps(describe(store), allow_nan=False)
    return 0 <= store.seconds < math.inf, bool(described), len(store.known())


def of_segment(rng: random.Random, data: bytes) -> bytes:
    """A segment whose HDF5 content is another, its header and checksum sound."""
    if rng.random() < 0.3:
        return of_bytes(rng, data)
    damaged = rng.random() < 0.3
    changed = of_bytes(rng, data) if damaged else tried(rng, lambda: _of_hdf5(rng, data))
    body = changed[HEADER_BYTES:]
    head, _, identity = data[:HEADER_BYTES].partition(b"body ")[0].partition(b"\n")
    digest = hashlib.sha256(body).hexdigest().encode()
    header = head + b"\n" + identity + b"body %d\nsha256 %s\n" % (len(body), digest)
    return header.ljust(HEADER_BYTES, b"\0") + body


def _of_hdf5(rng: random.Random, data: bytes) -> bytes:
    """HDF5 with another dataset, group, link or attribute; its SHA-256 of the data may be sound."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r") as f:
        arrays = {name: f[name][()] for name in f}
        attributes = dict(f.attrs)
    changes = of_arrays(rng, arrays) if rng.random() < 0.7 else arrays
    if changes is arrays:
        name = rng.choice(list(attributes))
        attributes[name] = rng.choice((b"", 0, 1.5, "x" * 64, b"a" * 64, [1, 2], "é"))
    out = io.BytesIO()
    with h5py.File(out, "w", userblock_size=HEADER_BYTES) as f:
        for name, given in changes.items():
            texts = given.dtype.kind in "UMOVc"
            array = np.char.encode(given.astype(str), "utf-8") if texts else given
            if array.ndim and array.size:
                f.create_dataset(name or "empty", data=array, chunks=array.shape, fletcher32=True)
            else:
                f.create_dataset(name or "empty", data=array.astype(array.dtype.str))
        for name, value in attributes.items():
            f.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value
        if rng.random() < 0.1:
            f["embedding2"] = h5py.ExternalLink("/etc/passwd", "/x")
            f["absent2"] = h5py.SoftLink("/embedding")
    return out.getvalue()


STORES = (
    Format("spec.json", make_store, {"*/spec.json": of_json}, read_store),
    Format("segment", make_store, {"*/shard-*.h5": of_segment}, read_store),
    Format("journal.jsonl", make_store, {"*/journal.jsonl": of_json_lines}, read_journal),
)

# Catalogues

ROWS = (
    ("a-1", "images/1.png", "red|striped", "dotted", "train", "p1", "a red thing"),
    ("a-2", "images/2.png", "red", "", "train", "p1", "the same"),
    ("a-3", "images/3.png", "blue|dotted", "", "train", "p2", "a blue thing"),
    ("a-4", "images/4.png", "-", "red", "val", "p3", "an empty thing"),
    ("a-5", "images/5.png", "blue|striped", "", "test", "p4", "a thing, striped"),
    ("a-6", "images/6.png", "red|dotted", "", "test", "p5", "última"),
)
PATHS = frozenset(row[1] for row in ROWS)
HEADER = ("image_id", "path", "tags", "tags_unknown", "split", "group", "title")
SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
EMPTY = ("", "nan", "NaN", "NaT", "<NA>", "null", "NULL")


def small_image(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 90, 30)).save(buffer, kind)
    return buffer.getvalue()


def make_images(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(1, 7):
        (folder / f"images/{i}.png").write_bytes(small_image(30 * i))


def records() -> list[dict[str, Any]]:
    """The rows as JSON has them: lists of tags."""
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    return [
        {**row, "tags": [t for t in row["tags"].split("|") if t != "-"], "extra": {"a": [1, None]}}
        for row in rows
    ]


def write_manifest(name: str, data: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_images(folder)
        (folder / name).write_bytes(data())

    return make


def separated(delimiter: str) -> Callable[[], bytes]:
    def data() -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([HEADER, *ROWS])
        return out.getvalue().encode()

    return data


def manifest_table() -> bytes:
    rows = records()
    return parquet(pa.table({name: [row[name] for row in rows] for name in HEADER}))


def read_manifest(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        catalog = read_catalog(folder / name)
        return catalog_rows(catalog)

    return read


def catalog_rows(catalog: Any) -> Any:
    """What a catalogue says of each image, by id."""
    tags = np.array(catalog.table.tags, dtype=object)
    columns = (catalog.image_ids, catalog.images.paths, catalog.split, catalog.group, catalog.title)
    return [
        [*map(str, row), sorted(tags[label == 1]), sorted(tags[label == -1])]
        for *row, label in zip(*columns, catalog.table.labels, strict=True)
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return str(int(value) if whole else value).strip()


def _tags(value: Any) -> list[str]:
    if isinstance(value, list):
        need(not any(isinstance(v, list | dict) for v in value))
        parts = [_cell(v) for v in value]
        parts = [] if parts == ["-"] else parts
    else:
        need(not isinstance(value, dict))
        text = _cell(value)
        if text in EMPTY or text == "-":
            return []
        parts = [part.strip() for part in text.split("|")]
        if text.startswith(("[", "{")):
            parts = [_cell(v) for v in json.loads(text)]
    need(not any(p in EMPTY or p == "-" or "|" in p for p in parts), "no tag")
    return sorted({*parts})


def understood(rows: list[dict[str, Any]], paths: Collection[str] = PATHS) -> Any:
    """What records say of each image, which is one of `paths`, by the rules of docs/data.md."""
    names = {}
    for asked, others in (("path", ("file_name", "filename", "image")), ("tags", ("labels",))):
        names |= dict.fromkeys(others, asked)
    found = []
    for given in rows:
        lower: dict[str, Any] = {}
        for key in sorted(given, key=lambda k: k.lower() != k):  # the usual spelling first
            lower.setdefault(key.lower(), given[key])
        row = {names.get(k, k): v for k, v in lower.items() if names.get(k) not in lower}
        path = _cell(row.get("path"))
        text = [_cell(row.get(k)) for k in ("image_id", "split", "group", "title")]
        need(all("\0" not in t and t.encode() is not None for t in (path, *text)))
        image_id, split, group, title = ("" if t in EMPTY else t for t in text)
        image_id = image_id or path.rpartition(".")[0]
        split = SPLITS.get(split.lower(), split.lower()) if "split" in row else "train"
        need(split in ("train", "val", "test"), "split")
        need(path in paths, "path")
        tags, unknown = _tags(row.get("tags")), _tags(row.get("tags_unknown"))
        need(not {*tags} & {*unknown})
        need(all("\0" not in t and t.encode() for t in (*tags, *unknown)))
        title = " ".join(title.split())
        found.append([image_id, path, split, group or image_id, title, tags, unknown])
    need(len({row[0] for row in found}) == len(found) > 0, "ids")
    return found


def understand_csv(data: bytes, delimiter: str) -> Any:
    text = data.decode("utf-8-sig")
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in header]
    rows = [row for row in rows if row]
    need(len({*header}) == len(header) and all(len(row) == len(header) for row in rows))
    return understood([dict(zip(header, row, strict=True)) for row in rows])


def second_manifest(name: str, understand: Callable[[bytes], Any]) -> Callable[[Path], Any]:
    return lambda folder: understand((folder / name).read_bytes())


def understand_json(data: bytes) -> Any:
    value = json.loads(data.decode("utf-8-sig"))
    need(isinstance(value, list) and all(isinstance(row, dict) for row in value))
    return understood(value)


def understand_lines(data: bytes) -> Any:
    lines = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    rows = [json.loads(line) for line in lines]
    need(all(isinstance(row, dict) for row in rows))
    return understood(rows)


def understand_parquet(data: bytes) -> Any:
    table = pq.read_table(io.BytesIO(data))
    table.validate(full=True)
    need(len({*table.column_names}) == table.num_columns)
    return understood(table.to_pylist())


def _manifest(name, data, mutate, understand):
    second = second_manifest(name, understand)
    return Format(name, write_manifest(name, data), {name: mutate}, read_manifest(name), second)


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_COMMAS, _TABS = of_cells(","), of_cells("\t")
CATALOGUES = (
    _manifest("shop.csv", separated(","), _COMMAS, lambda d: understand_csv(d, ",")),
    _manifest("shop.tsv", separated("\t"), _TABS, lambda d: understand_csv(d, "\t")),
    _manifest(
        "shop.csv.gz",
        lambda: gzip.compress(separated(",")(), mtime=0),
        packed(lambda d: gzip.compress(d, mtime=0), gzip.decompress, _COMMAS),
        lambda d: understand_csv(gzip.decompress(d), ","),
    ),
    _manifest("shop.json", lambda: json.dumps(records()).encode(), of_json, understand_json),
    _manifest("shop.jsonl", lambda: json_lines(records()), of_json_lines, understand_lines),
    _manifest("shop.parquet", manifest_table, of_parquet, understand_parquet),
)

# Predictions and scores of other tools

TAGS = ("blue", "dotted", "red")
LOGITS = np.linspace(-3, 3, 12).astype(np.float32).reshape(4, 3)
SCORED = ("a-1", "a-2", "a-3", "a-4")


def make_predictions(folder: Path) -> None:
    provenance = {
        "backbone": "demo:cnn", "strategy": "probe", "catalog": "shop.csv", "seed": 0,
        "exclusive": ["colour"], "settings": {"seed": 0}, "thresholds": "plug-in",
    }  # fmt: skip
    thresholds = np.array([0.5, np.inf, -1], np.float32)
    Predictions(
        np.array(SCORED), TAGS, LOGITS, thresholds, np.array(["f-1", "f-2"]), provenance
    ).save(folder / "predictions.npz")


def read_predictions(folder: Path) -> Any:
    p = Predictions.load(folder / "predictions.npz")
    arrays = p.image_ids.tolist(), p.logits, p.thresholds, p.fitted_ids.tolist()
    return p.tags, *arrays, p.exclusive, p.provenance


def second_predictions(folder: Path) -> Any:
    with np.load(folder / "predictions.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = strict_json(arrays.pop("header").tobytes())
    need(header["format"] == 1 and isinstance(header["tags"], list))
    ids, fitted = arrays["image_ids"], arrays["fitted_ids"]
    logits, thresholds = arrays["logits"], arrays["thresholds"]
    tags, provenance = header["tags"], header["provenance"]
    need(is_names(tags) and isinstance(provenance, dict))
    need(all(a.dtype.kind == "U" and a.ndim == 1 for a in (ids, fitted)))
    need(is_names(ids.tolist()) and is_names(set(fitted.tolist())))
    need(logits.dtype == thresholds.dtype == np.float32)
    need(logits.shape == (len(ids), len(tags)) and thresholds.shape == (len(tags),))
    need(not np.isnan(logits).any() and not np.isnan(thresholds).any())
    exclusive = provenance.get("exclusive") or []
    need(isinstance(exclusive, list) and all(isinstance(e, str) for e in exclusive))
    return tags, ids.tolist(), logits, thresholds, fitted.tolist(), exclusive, provenance


def foreign_csv(delimiter: str) -> bytes:
    lines = [("image_id", *TAGS), *zip(SCORED, *LOGITS.T.tolist(), strict=True)]
    return "".join(delimiter.join(map(str, line)) + "\n" for line in lines).encode()


def foreign_npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, image_ids=np.array(SCORED), tags=np.array(TAGS), scores=LOGITS,
             thresholds=np.zeros(3))  # fmt: skip
    return out.getvalue()


def foreign_parquet() -> bytes:
    columns = {tag: LOGITS[:, j] for j, tag in enumerate(TAGS)}
    return parquet(pa.table({"image_id": list(SCORED), **columns}))


def _is_index(name: str) -> bool:
    return (
        name == "" or name.startswith(("Unnamed: ", "__index_level_", "level_")) or name == "index"
    )


def _scores(ids: Any, tags: Any, scores: Any, thresholds: Any = None) -> Any:
    scores = np.asarray(scores, np.float64)
    need(is_names(ids) and is_names(tags) and "image_id" not in tags)
    need(scores.shape == (len(ids), len(tags)) and not np.isnan(scores).any() and len(tags) > 0)
    return list(ids), list(tags), scores, thresholds


def read_scores(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        if not is_foreign(folder / name):
            Predictions.load(folder / name)  # as `score` goes on with it
        found = read_foreign(folder / name)
        return found.image_ids.tolist(), found.tags, found.scores, found.thresholds

    return read


def second_scores_csv(name: str, delimiter: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        text = (folder / name).read_bytes().decode("utf-8-sig")
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [cell.strip() for cell in header]
        rows = [row for row in rows if row]
        need(all(len(row) == len(header) for row in rows))
        at = header.index("image_id")
        kept = [k for k, tag in enumerate(header) if k != at and not _is_index(tag)]
        ids = [row[at].strip() for row in rows]
        scores = [[float(row[k]) for k in kept] for row in rows]
        return _scores(ids, [header[k] for k in kept], np.reshape(scores, (len(rows), len(kept))))

    return read


def second_scores_parquet(folder: Path) -> Any:
    table = pq.read_table(folder / "scores.parquet")
    table.validate(full=True)
    need(len({*table.column_names}) == table.num_columns)
    tags = [t for t in table.column_names if t != "image_id" and not _is_index(t)]
    kinds = [table.schema.field(t).type for t in tags]
    need(all(pa.types.is_floating(k) or pa.types.is_integer(k) for k in kinds))
    ids = table.column("image_id")
    need(pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type) or
         pa.types.is_integer(ids.type) or pa.types.is_dictionary(ids.type))  # fmt: skip
    need(ids.null_count == 0)
    columns = [table.column(t).to_pylist() for t in tags]
    need(all(v is not None and float(v) == v for column in columns for v in column))
    return _scores([str(i) for i in ids.to_pylist()], tags, np.array(columns, np.float64).T)


def second_scores_npz(folder: Path) -> Any:
    with np.load(folder / "scores.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    ids, tags, scores = arrays["image_ids"], arrays["tags"], arrays["scores"]
    thresholds = arrays.get("thresholds")
    need(ids.dtype.kind in "Ui" and tags.dtype.kind == "U" and scores.dtype.kind in "fiu")
    need(ids.ndim == tags.ndim == 1)
    need(scores.shape == (len(ids), len(tags)) and (scores.astype(np.float64) == scores).all())
    kept = [k for k, t in enumerate(tags.tolist()) if not _is_index(t)]
    if thresholds is not None:
        need(thresholds.dtype.kind in "fiu" and thresholds.shape == (len(tags),))
        need(not np.isnan(thresholds).any())
        thresholds = thresholds[kept].astype(np.float64)
    ids = [str(i) for i in ids.tolist()]
    return _scores(ids, tags[kept].tolist(), scores[:, kept], thresholds)


def second_thresholds(folder: Path) -> Any:
    text = (folder / "thresholds.csv").read_bytes().decode("utf-8-sig")
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [cell.strip() for cell in header]
    at = header.index("tag"), header.index("threshold")
    cells = [[row[k] for k in at] for row in rows if row]
    found = {tag: float(value) for tag, value in cells}
    need(len(found) == len(cells) and not any(map(math.isnan, found.values())))
    return np.array([found[tag] for tag in TAGS])


def file_of(name: str, data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data()) and None


def _scores_format(name, data, mutate, second):
    return Format(name, file_of(name, data), {name: mutate}, read_scores(name), second)


SCORES = (
    Format(
        "predictions.npz",
        make_predictions,
        {"predictions.npz": of_npz({"header": of_json})},
        read_predictions,
        second_predictions,
    ),
    _scores_format(
        "scores.csv", lambda: foreign_csv(","), _COMMAS, second_scores_csv("scores.csv", ",")
    ),
    _scores_format(
        "scores.tsv", lambda: foreign_csv("\t"), _TABS, second_scores_csv("scores.tsv", "\t")
    ),
    _scores_format("scores.parquet", foreign_parquet, of_parquet, second_scores_parquet),
    _scores_format("scores.npz", foreign_npz, of_npz(), second_scores_npz),
    Format(
        "thresholds.csv",
        file_of("thresholds.csv", lambda: b"tag,threshold\nblue,0.5\ndotted,inf\nred,-1.25\n"),
        {"thresholds.csv": _COMMAS},
        lambda folder: read_thresholds(folder / "thresholds.csv", TAGS),
        second_thresholds,
    ),
)

FORMATS = (*STORES, *CATALOGUES, *SCORES)

"""Extraction with a stand-in backbone; run as a program, this file is the writer that is killed."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retailtag.backbones.preprocess import accepts_truncated
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.context import RunContext
from retailtag.errors import DataError, StaleFeatures, Unavailable, UnreadableImage, UsageError
from retailtag.extraction import extract as extract_module
from retailtag.extraction.embed import Loading, embed_block
from retailtag.extraction.extract import extract, extract_together
from retailtag.extraction.shards import Shard
from retailtag.images.decode import TRUNCATED_ACCEPTED
from retailtag.progress import SILENT
from retailtag.settings import ComputeSettings, ExtractSettings, ReadingSettings
from retailtag.store import FeatureSpec, FeatureStore
from retailtag.store.maintenance import merge


class StandIn:
    """A fixed random projection of 4 x 4 pixels."""

    id = "demo:stand-in"
    dim = 6

    def __init__(self, output: str = "avg", pause: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self._W = torch.randn(48, self.dim, generator=generator)
        self._output = output
        self._pause = pause
        self.n_embedded = 0
        self.batches: list[int] = []

    def spec(self, engine: str = "eager-float32", dtype: str = "float32") -> FeatureSpec:
        return FeatureSpec(self.id, "ab" * 32, "{}", self._output, self.dim, "{}", engine, dtype)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((4, 4))).transpose(2, 0, 1)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self._pause)
        self.n_embedded += len(pixels)
        self.batches.append(len(pixels))
        return (pixels.float() / 255).flatten(1) @ self._W


class Exact(StandIn):
    """Sums of whole numbers: the same in every batch. Another `side` is another preprocessing."""

    dim = 3

    def __init__(self, name: str = "exact", side: int = 4, most: int = 1024) -> None:
        super().__init__()
        self.id, self.side, self.most = f"demo:{name}", side, most
        self.resized: list[Image.Image] = []

    def preprocess(self, image: Image.Image) -> np.ndarray:
        self.resized.append(image)
        return np.asarray(image.resize((self.side, self.side))).transpose(2, 0, 1)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pixels.float().sum((2, 3))


class Drawn:
    """Images drawn from their row; `data` overrides a row's bytes, None: cannot be read."""

    def __init__(self, salt: int = 0) -> None:
        self.salt = salt
        self.data: dict[int, bytes | None] = {}
        self.reads: list[int] = []

    def stamp(self, index: int) -> None:
        """No file holds it."""

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        data = self.data.get(index, b"")
        if data is None:
            raise UnreadableImage("no such file")
        return data or png(index + self.salt)

    def name(self, index: int) -> str:
        return f"row {index}"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn_catalog(n: int) -> Catalog:
    ids = np.array([f"image-{i:03d}" for i in range(n)])
    split = np.full(n, "train")
    table = TagTable.build(("red",), np.ones((n, 1), np.int8), split == "train")
    return Catalog(Path("drawn.csv"), ids, split, ids, np.full(n, ""), table, Drawn())


@pytest.fixture
def catalog(monkeypatch):
    """Thirty images in blocks of eight, two batches a block."""
    monkeypatch.setattr(extract_module, "IMAGES_PER_BLOCK", 8)
    return drawn_catalog(30)


def run_context(catalog, features, *, workers=2, progress=SILENT, **reading):
    compute = ComputeSettings(device="cpu", features=features, workers=workers)
    return RunContext(catalog, ReadingSettings(**reading), compute, progress=progress)


def run(catalog, features, backbone=None, *, dtype="float32", allow_truncated=False, **kwargs):
    context = run_context(catalog, features, allow_truncated=allow_truncated)
    settings = ExtractSettings(dtype=dtype, batch_size=4)
    return extract(context, backbone or StandIn(), settings, **kwargs)


def test_every_image_gets_the_embedding_of_its_own_pixels(catalog, tmp_path):
    backbone = StandIn()
    summary = run(catalog, tmp_path, backbone)
    assert (summary.n_computed, summary.n_reused, summary.absent) == (30, 0, {})
    view = summary.store.load(catalog.image_ids)
    for row in (0, 7, 8, 29):
        image = Image.open(io.BytesIO(png(row)))
        alone = backbone.embed(torch.from_numpy(backbone.preprocess(image)[None].copy()))
        np.testing.assert_allclose(view.X[row], alone[0].numpy(), rtol=1e-5)
    assert summary.store.known()["image-005"] == hashlib.sha256(png(5)).hexdigest()
    assert len(list(summary.store.path.glob("shard-*.h5"))) == 4


def test_a_second_run_computes_nothing_and_adds_nothing(catalog, tmp_path):
    first = run(catalog, tmp_path)
    files = {p: p.read_bytes() for p in first.store.path.iterdir()}
    backbone = StandIn()
    second = run(catalog, tmp_path, backbone)
    assert (second.n_computed, second.n_reused, backbone.n_embedded) == (0, 30, 0)
    assert second.images_per_second == 0.0
    assert second.seconds_total == first.seconds_total > 0
    same = {p: p.read_bytes() for p in first.store.path.iterdir() if p.name != ".lock"}
    assert same == {p: data for p, data in files.items() if p.name != ".lock"}


def test_only_new_and_changed_images_are_computed(catalog, tmp_path):
    half = drawn_catalog(17)
    run(half, tmp_path)
    catalog.images.data[3] = png(1003)
    backbone = StandIn()
    summary = run(catalog, tmp_path, backbone)
    assert (summary.n_computed, summary.n_reused, backbone.n_embedded) == (14, 16, 14)
    fresh = run(catalog, tmp_path / "fresh")
    ids = catalog.image_ids
    np.testing.assert_allclose(summary.store.load(ids).X, fresh.store.load(ids).X, rtol=1e-5)
    assert summary.store.known() == fresh.store.known()


def test_unreadable_images_are_listed_and_tried_again(catalog, tmp_path):
    catalog.images.data = {2: None, 9: b"<html>", 29: b"junk"}
    summary = run(catalog, tmp_path)
    assert summary.n_computed == 27
    assert summary.absent["image-002"] == "no such file"
    assert "web page" in summary.absent["image-009"]
    assert list(summary.absent) == ["image-002", "image-009", "image-029"]
    assert summary.store.load(catalog.image_ids).absent == summary.absent
    segments = sorted(summary.store.path.glob("*.h5"))
    assert run(catalog, tmp_path).absent == summary.absent
    assert sorted(summary.store.path.glob("*.h5")) == segments  # nothing new to say
    catalog.images.data = {5: None}  # three are repaired, one went bad
    third = run(catalog, tmp_path)
    assert (third.n_computed, third.absent) == (3, {"image-005": "no such file"})
    assert third.n_reused == 26


def test_strict_stores_what_is_readable_and_then_fails(catalog, tmp_path):
    catalog.images.data = dict.fromkeys(range(25))
    with pytest.raises(DataError, match=r"25 of 30 images of drawn\.csv.*\n.*image-000: no such"):
        run(catalog, tmp_path, strict=True)
    with pytest.raises(DataError, match="and 5 more"):
        run(catalog, tmp_path, strict=True)
    catalog.images.data = {}
    assert run(catalog, tmp_path, strict=True).n_reused == 5


def test_recompute_replaces_every_row(catalog, tmp_path):
    first = run(catalog, tmp_path)
    summary = run(catalog, tmp_path, recompute=True)
    assert (summary.n_computed, summary.n_reused) == (30, 0)
    names = sorted(p.name for p in summary.store.path.glob("*.h5"))
    assert names == [f"shard-{i:06d}.h5" for i in range(4, 8)]
    assert summary.store.digest_for(catalog.image_ids) == first.store.digest_for(catalog.image_ids)
    assert summary.seconds_total < first.seconds_total + summary.seconds


def test_another_identity_is_another_store(catalog, tmp_path):
    one = run(catalog, tmp_path)
    two = run(catalog, tmp_path, StandIn(output="cls"))
    half = run(catalog, tmp_path, dtype="float16")
    assert len({one.store.path, two.store.path, half.store.path}) == 3
    assert half.n_computed == 30
    assert half.store.nbytes < one.store.nbytes


def test_an_interrupted_run_keeps_finished_blocks_and_ends_the_same(catalog, tmp_path):
    whole = run(catalog, tmp_path / "whole")

    class Interrupted(StandIn):
        def embed(self, pixels):
            if len(self.batches) == 5:  # inside the third block
                raise KeyboardInterrupt
            return super().embed(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(catalog, tmp_path / "cut", Interrupted())
    resumed = run(catalog, tmp_path / "cut")
    assert (resumed.n_reused, resumed.n_computed) == (16, 14)
    assert_same_data(resumed.store, whole.store)


def test_blocks_before_the_one_that_is_interrupted_are_stored(catalog, tmp_path):
    class Interrupted(StandIn):
        def embed(self, pixels):
            if len(self.batches) == 4:  # the third block has just begun
                raise KeyboardInterrupt
            return super().embed(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(catalog, tmp_path, Interrupted())
    assert run(catalog, tmp_path).n_reused == 16


def test_what_the_writer_fails_at_ends_the_run_and_loses_nothing(catalog, tmp_path, monkeypatch):
    whole = run(catalog, tmp_path / "whole")
    real, calls = FeatureStore.append, []

    def append(store, *args):
        calls.append(args)
        if len(calls) == 3:
            raise Unavailable("No space left on device")
        return real(store, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "append", append)
        with pytest.raises(Unavailable, match="No space left"):
            run(catalog, tmp_path / "full")
    assert len(calls) == 3
    resumed = run(catalog, tmp_path / "full")
    assert (resumed.n_reused, resumed.n_computed) == (16, 14)
    assert_same_data(resumed.store, whole.store)


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_the_batch_size_changes_no_byte(catalog, tmp_path, batch_size):
    catalog.images.data = {11: None}
    one = run(catalog, tmp_path / "one", Exact())
    context = run_context(catalog, tmp_path / "other", workers=1)
    other = extract(context, Exact(), ExtractSettings(batch_size=batch_size))
    assert_same_data(one.store, other.store)


def test_a_batch_that_finds_no_memory_is_halved_and_changes_no_byte(catalog, tmp_path):
    said = Said()
    whole = run(catalog, tmp_path / "whole", Exact())
    backbone = Exact(most=3)
    context = run_context(catalog, tmp_path / "small", progress=said)
    small = extract(context, backbone, ExtractSettings(batch_size=8))
    assert_same_data(small.store, whole.store)
    assert backbone.batches[:3] == [8, 4, 2]
    assert set(backbone.batches[3:]) == {2}
    assert sum("not enough memory for" in line for line in said.lines) == 2
    assert small.store.journal.entries()[-1]["run"]["batch_size"] == 2


class Said:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.done, self.total = 0, 0

    @contextmanager
    def task(self, name, total, unit="images"):
        self.name, self.total, self.unit = name, total, unit

        def advance(n, note="", /):
            self.done += n
            self.notes.append(note)

        yield advance

    def say(self, line):
        self.lines.append(line)


def several() -> list[Exact]:
    """Two share their preprocessing."""
    wide = Exact("wide", side=6)
    first, second = Exact("first"), Exact("second")
    second.preprocess = first.preprocess
    return [first, wide, second]


def test_several_backbones_get_what_each_gets_alone_and_images_are_read_once(catalog, tmp_path):
    catalog.images.data = {2: None, 9: b"<html>"}
    alone = [run(catalog, tmp_path / "alone", backbone).store for backbone in several()]
    catalog.images.reads.clear()
    said = Said()
    backbones = several()
    context = run_context(catalog, tmp_path / "together", progress=said)
    together = extract_together(context, backbones, ExtractSettings(batch_size=4))
    assert [len(backbone.resized) for backbone in backbones] == [28, 28, 0]
    assert sorted(catalog.images.reads) == list(range(30))
    for one, summary in zip(alone, together, strict=True):
        assert_same_data(one, summary.store)
        assert summary.n_computed == 28
        assert list(summary.absent) == ["image-002", "image-009"]
    assert len([line for line in said.lines if "could not be read" in line]) == 1
    assert (said.done, said.total, said.unit) == (90, 90, "embeddings")
    assert said.name == "extract demo:first, demo:wide, demo:second"
    assert re.fullmatch(r"model \d+%, images \d+%, writing \d+%; 2 unreadable", said.notes[-1]), (
        said.notes[-1]
    )


def test_a_store_that_has_a_block_is_passed_over(catalog, tmp_path):
    """One is a block ahead, as a kill between two stores leaves it, one is finished."""
    catalog.images.data = {2: None}
    first, wide, second = several()
    alone = [run(catalog, tmp_path / "alone", backbone).store for backbone in (first, wide, second)]

    class Interrupted(Exact):
        def embed(self, pixels):
            if len(self.batches) == 3:
                raise KeyboardInterrupt
            return super().embed(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(catalog, tmp_path / "cut", Interrupted("first"))
    run(catalog, tmp_path / "cut", wide)
    catalog.images.reads.clear()
    backbones = several()
    context = run_context(catalog, tmp_path / "cut")
    cut = extract_together(context, backbones, ExtractSettings(batch_size=4))
    assert [s.n_computed for s in cut] == [22, 0, 29]
    assert sum(backbones[1].batches) == 0
    for one, summary in zip(alone, cut, strict=True):
        assert_same_data(one, summary.store)
    decoded = len(catalog.images.reads) - 29  # what a store has is read to be hashed
    assert decoded == 30 + 1  # and the broken one is tried again, at the end of one list


def test_a_backbone_given_twice_is_refused(catalog, tmp_path):
    with pytest.raises(UsageError, match="demo:exact is given twice"):
        extract_together(run_context(catalog, tmp_path), [Exact(), Exact()])


def assert_same_data(a: FeatureStore, b: FeatureStore) -> None:
    """Segments are equal byte for byte, which ids, hashes and embeddings then are too."""
    names = sorted(p.name for p in a.path.glob("*.h5"))
    assert names == sorted(p.name for p in b.path.glob("*.h5"))
    for name in names:
        assert (a.path / name).read_bytes() == (b.path / name).read_bytes()


def test_a_run_resumed_after_sigkill_is_byte_identical(tmp_path, fork_script):
    """Kill the writer again and again, each time once it has committed one more segment."""
    features = tmp_path / "killed"
    program = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
    for _ in range(2):
        before = n_segments(features)
        writer = fork_script(program, features)
        while writer.is_alive() and n_segments(features) == before:
            time.sleep(0.002)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    assert 2 <= n_segments(features) < 13
    writer = fork_script(program, features)
    writer.join()
    assert writer.exitcode == 0
    whole = write(tmp_path / "whole", pause=0.0)
    assert_same_data(FeatureStore.find(features, StandIn().spec()), whole.store)


def n_segments(features: Path) -> int:
    return len(list(features.glob("*/shard-*.h5")))


def write(features: Path, pause: float):
    """What the killed program does: 100 images in blocks of 8."""
    previous, extract_module.IMAGES_PER_BLOCK = extract_module.IMAGES_PER_BLOCK, 8
    try:
        return run(drawn_catalog(100), features, StandIn(pause=pause))
    finally:
        extract_module.IMAGES_PER_BLOCK = previous


def test_a_block_is_the_same_whoever_computes_it(catalog):
    rows = np.array([4, 1, 9, 20, 11])
    catalog.images.data = {9: None}
    blocks = [
        embed_block(catalog.images, rows, StandIn(), Loading(batch_size=2, workers=workers))
        for workers in (0, 1, 4)
    ]
    for block in blocks:
        assert block.rows.tolist() == [4, 1, 20, 11]
        assert [f.row for f in block.failures] == [9]
        assert block.sha256 == blocks[0].sha256
        np.testing.assert_array_equal(block.embeddings, blocks[0].embeddings)


@pytest.mark.parametrize("of", [1, 3, 7])
def test_shards_computed_apart_and_merged_are_what_one_process_writes(catalog, tmp_path, of):
    catalog.images.data = {2: None, 9: b"<html>"}  # 7 shards of 4 blocks: some are empty
    whole = run(catalog, tmp_path / "whole").store
    parts = [run(catalog, tmp_path / "features", shard=Shard(i, of)) for i in range(of, 0, -1)]
    assert sum(part.n_computed for part in parts) == 28
    assert sum(len(part.absent) for part in parts) == 2
    paths = [part.store.path for part in reversed(parts)]
    merged = merge(tmp_path / "features", paths).store
    assert_same_data(merged, whole)
    assert merged.digest_for(catalog.image_ids) == whole.digest_for(catalog.image_ids)
    assert merged.absent() == whole.absent()
    assert merged.seconds == pytest.approx(sum(part.seconds_total for part in parts))
    assert FeatureStore.find(tmp_path / "features", StandIn().spec()).path == merged.path


def test_a_shard_is_resumed_in_its_own_store(catalog, tmp_path):
    first = run(catalog, tmp_path, shard=Shard(2, 2))
    assert first.store.path.parent == tmp_path / "shard-2-of-2"
    again = run(catalog, tmp_path, shard=Shard(2, 2))
    assert (first.n_computed, again.n_computed, again.n_reused) == (14, 0, 14)
    catalog.images.data = {0: None, 29: None}
    with pytest.raises(DataError, match=r"--strict: 1 of 14 images.*\n.*image-029"):
        run(catalog, tmp_path, shard=Shard(2, 2), recompute=True, strict=True)


def test_a_shard_under_the_former_name_of_its_folder_is_refused(catalog, tmp_path):
    (tmp_path / "part-02-of-12").mkdir()
    with pytest.raises(UsageError, match=r"part-02-of-12 holds shard 2/12 .*rename it to shard-02"):
        run(catalog, tmp_path, shard=Shard(2, 12))
    assert [path.name for path in tmp_path.iterdir()] == ["part-02-of-12"]
    assert run(catalog, tmp_path, shard=Shard(1, 12)).store.path.parent.name == "shard-01-of-12"


@given(st.integers(0, 5000), st.integers(1, 40), st.integers(1, 1024))
def test_shards_are_disjoint_whole_blocks_of_nearly_equal_number(n, of, block):
    rows = [Shard(i, of).rows(n, block) for i in range(1, of + 1)]
    assert np.array_equal(np.concatenate(rows), np.arange(n))
    n_blocks = [-(-len(r) // block) for r in rows]
    assert max(n_blocks) - min(n_blocks) <= 1
    assert all(r[0] % block == 0 for r in rows if len(r))
    folders = [Shard(i, of).folder for i in range(1, of + 1)]
    assert folders == sorted(set(folders))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "2", "a/b", "-1/4", "1/4/2", "1 /4", ""])
def test_a_malformed_shard_is_refused_in_one_sentence(text):
    with pytest.raises(UsageError, match=rf"^--shard {text}: give I/N with I from 1 to N, [^.]*.$"):
        Shard.parse(text)


def test_files_that_end_early_are_part_of_the_identity(catalog, tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    catalog.images.data = {4: buffer.getvalue()[:-500]}
    strict = run(catalog, tmp_path)
    assert "truncated" in strict.absent["image-004"]
    lenient = run(catalog, tmp_path, allow_truncated=True)
    assert (lenient.n_computed, lenient.absent) == (30, {})
    assert accepts_truncated(lenient.store.spec)
    assert not accepts_truncated(strict.store.spec)
    again = run(catalog, tmp_path)
    assert (again.n_computed, list(again.absent)) == (0, ["image-004"])
    with pytest.raises(StaleFeatures) as refusal:
        FeatureStore.open(lenient.store.path, strict.store.spec)
    assert f"preprocessing.decode.truncated: stored '{TRUNCATED_ACCEPTED}', asked None" in str(
        refusal.value
    )


def test_a_second_extraction_of_the_same_store_is_refused(catalog, tmp_path):
    store = FeatureStore.create_or_open(tmp_path, StandIn().spec())
    with store.writing(), pytest.raises(Unavailable, match="by another process"):
        run(catalog, tmp_path)


def test_a_deleted_segment_is_computed_again(catalog, tmp_path):
    first = run(catalog, tmp_path)
    digest = first.store.digest_for(catalog.image_ids)
    (first.store.path / "shard-000001.h5").unlink()
    again = run(catalog, tmp_path)
    assert (again.n_computed, again.n_reused) == (8, 22)
    assert again.store.digest_for(catalog.image_ids) == digest


def test_an_empty_catalogue_makes_an_empty_store(tmp_path):
    catalog = drawn_catalog(3)
    empty = replace(
        catalog,
        image_ids=catalog.image_ids[:0],
        split=catalog.split[:0],
        group=catalog.group[:0],
        title=catalog.title[:0],
        table=TagTable.build(("red",), np.ones((0, 1), np.int8), np.ones(0, bool)),
    )
    summary = run(empty, tmp_path)
    assert (summary.n_computed, summary.store.n_rows) == (0, 0)


def test_the_journal_records_what_the_identity_leaves_out(catalog, tmp_path):
    summary = run(catalog, tmp_path)
    entries = summary.store.journal.entries()
    assert [entry["shard"] for entry in entries] == [f"shard-{i:06d}.h5" for i in range(4)]
    assert sum(entry["seconds"] for entry in entries) == summary.seconds_total
    assert entries[0]["run"]["batch_size"] == 4
    assert entries[0]["run"]["versions"]["torch"]
    assert entries[0].keys() >= {"read_seconds", "decode_seconds", "wait_seconds", "model_seconds"}


def test_the_summary_is_plain_json(catalog, tmp_path):
    value = run(catalog, tmp_path).to_json()
    assert value["n_computed"] == 30
    assert value["limit"] in ("model", "decoding", "reading", "disk")
    assert value["shares"].keys() == {"model", "images", "disk", "writing"}
    assert value["shares"]["model"] + value["shares"]["images"] + value["shares"]["disk"] <= 1.001
    assert value["images_per_second"] > 0
    assert value["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*/*.h5"))


if __name__ == "__main__":
    write(Path(sys.argv[1]), pause=0.02)

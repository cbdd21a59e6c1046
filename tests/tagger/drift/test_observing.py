"""Properties of images, what a model sees of them, the kept reference and the monitor."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from retailtag.errors import ArtefactError, DataError
from retailtag.tagger.drift.monitor import DriftMonitor
from retailtag.tagger.drift.properties import (
    OF_PIXELS,
    PROPERTIES,
    file_properties,
    pixel_properties,
)
from retailtag.tagger.drift.reference import FILE, Reference, model_digest
from retailtag.tagger.drift.sample import confidences_of, drawn_rows
from retailtag.tagger.drift.sources import Pictures, read_sample


def photograph(seed=0, size=(60, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_properties_of_pixels_follow_their_definitions():
    image = photograph()
    found = dict(zip(OF_PIXELS, pixel_properties(np.asarray(image)).tolist(), strict=True))
    luma = np.asarray(image.convert("L"), np.float64)
    laplacian = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 39)
        for x in range(1, 59)
    ]
    assert found["megapixels"] == pytest.approx(0.0024)
    assert found["aspect"] == pytest.approx(1.5)
    assert found["brightness"] == pytest.approx(luma.mean(), rel=1e-5)
    assert found["contrast"] == pytest.approx(luma.std(), rel=1e-5)
    assert found["sharpness"] == pytest.approx(np.var(laplacian), rel=1e-4)


def test_blur_lowers_sharpness_and_the_size_of_a_scene_does_not_matter():
    scene = photograph(size=(64, 64)).resize((1024, 1024), Image.Resampling.BICUBIC)
    sharp, large = (
        pixel_properties(np.asarray(image))[4] for image in (scene.resize((256, 256)), scene)
    )
    blurred = pixel_properties(np.asarray(scene.filter(ImageFilter.GaussianBlur(60))))[4]
    assert large == pytest.approx(sharp, rel=0.3)
    assert blurred < 0.1 * large
    assert pixel_properties(np.zeros((1, 2, 3), np.uint8))[4] == 0


@pytest.mark.parametrize("quality", [5, 20, 50, 75, 88, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_table(quality):
    data = encoded(photograph(), quality=quality)
    found = file_properties(data)
    assert found.kind == "JPEG"
    assert found.jpeg_quality == pytest.approx(quality, abs=1)
    assert found.bytes_per_pixel == len(data) / 2400


def test_other_files_have_no_quality_and_damaged_ones_no_properties():
    assert np.isnan(file_properties(encoded(photograph(), "PNG")).jpeg_quality)
    for data in (b"", b"\xff\xd8\xff", b"<html>"):
        assert file_properties(data).kind == "none"


def test_whole_products_are_drawn():
    group = np.repeat([f"p{k}" for k in range(30)], 3)
    rows = drawn_rows(group, 20, seed=0)
    assert len(rows) == 21
    assert (np.unique(group[rows], return_counts=True)[1] == 3).all()
    assert len(drawn_rows(group, 90, seed=0)) == 90
    assert (rows != drawn_rows(group, 20, seed=1)).any()


@pytest.fixture(scope="module")
def observed(drift_tagger, tiny):
    pictures = Pictures.of_split(tiny)
    return read_sample(drift_tagger, pictures, 1000, 0)[0]


def test_a_sample_is_what_the_model_sees(drift_tagger, tiny, observed):
    rows = tiny.rows("test")
    assert observed.has_groups
    assert observed.names.tolist() == tiny.image_ids[rows].tolist()
    assert observed.group.tolist() == tiny.group[rows].tolist()
    data = [tiny.images.read(row) for row in rows[:5]]
    logits = drift_tagger.logits(data)
    np.testing.assert_allclose(observed.confidences[:5, 0], logits.max(axis=1), rtol=1e-4)
    given = [{drift_tagger.tags[j] for j in np.flatnonzero(row)} for row in observed.given[:5]]
    assert given == [set(tags) for tags in drift_tagger.tag(data)]
    assert set(observed.kinds) == {"PNG"}
    assert np.isnan(observed.properties[:, PROPERTIES.index("jpeg_quality")]).all()


def test_train_images_are_compared_with_a_warning_only(tiny):
    assert not Pictures.of_split(tiny).notes
    (note,) = Pictures.of_split(tiny, "train").notes
    assert "too confident" in note
    with pytest.raises(DataError, match="no image in the split val"):
        Pictures.of_split(tiny, "val")


def test_files_that_cannot_be_read_are_named(drift_tagger, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    photograph().save(good)
    bad.write_bytes(b"nothing")
    sample, failures, _ = read_sample(drift_tagger, Pictures.of_sources([good, bad]), 10, 0)
    assert sample.names.tolist() == [str(good)]
    assert [f.row for f in failures] == [1]
    with pytest.raises(
        DataError, match=r"None of the 1 images of .*bad\.png could be read; .*png "
    ):
        read_sample(drift_tagger, Pictures.of_sources([bad]), 10, 0)


def test_products_of_a_manifest_without_tags_are_known(tmp_path):
    photograph().save(tmp_path / "a.png")
    photograph(1).save(tmp_path / "b.png")
    manifest = tmp_path / "new.csv"
    manifest.write_text("path,group\na.png,p\nb.png,p\n")
    found = Pictures.of_sources([manifest])
    assert found.group.tolist() == ["p", "p"]
    assert found.images.read(1) == (tmp_path / "b.png").read_bytes()
    manifest.write_text("path\na.png\nb.png\n")
    assert Pictures.of_sources([manifest]).group is None


@pytest.fixture
def kept(observed, drift_tagger):
    return Reference(observed, drift_tagger.tags, model_digest(drift_tagger), "test split")


def test_a_reference_comes_back_as_it_was_written(kept, drift_tagger, tmp_path):
    path = tmp_path / FILE
    kept.save(path)
    found = Reference.load(path)
    found.check(drift_tagger, path)
    np.testing.assert_allclose(
        found.sample.embeddings, kept.sample.embeddings, rtol=1e-3, atol=1e-7
    )
    assert (found.sample.given == kept.sample.given).all()
    # exactly: a constant of one side must be the same constant of the other
    np.testing.assert_array_equal(found.sample.confidences, kept.sample.confidences)
    np.testing.assert_array_equal(found.sample.properties, kept.sample.properties)
    assert (found.sample.kinds == kept.sample.kinds).all()
    assert (found.sample.digests == kept.sample.digests).all()
    assert found.described == "test split"
    same = kept.sample.group[:, None] == kept.sample.group
    assert ((found.sample.group[:, None] == found.sample.group) == same).all()


def test_a_reference_stays_small(kept, tmp_path):
    n = 6000
    wide = replace(
        kept.sample.take(np.zeros(n, np.intp)),
        embeddings=np.random.default_rng(0).normal(size=(n, 2048)).astype(np.float32),
        group=np.array([f"p{k // 2}" for k in range(n)]),
    )
    path = tmp_path / FILE
    replace(kept, sample=wide).save(path)
    assert path.stat().st_size < 5_000_000
    assert 900 < len(Reference.load(path).sample) < 1200


def test_a_reference_of_another_model_or_other_thresholds_is_refused(kept, drift_tagger, tmp_path):
    head = drift_tagger.head
    for other in (
        replace(head, thresholds=head.thresholds + 1),
        replace(head, weight=head.weight * 2),
        replace(head, tags=("red", "blue", "green")),
    ):
        with pytest.raises(ArtefactError, match="made with another model, or other thresholds"):
            kept.check(replace(drift_tagger, head=other), tmp_path / FILE)
    exact = replace(drift_tagger, assignment="exactly-one", exclusive=("tags",))
    with pytest.raises(ArtefactError):
        kept.check(exact, tmp_path / FILE)


def test_a_missing_or_foreign_reference_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist; name images with --reference"):
        Reference.load(tmp_path / FILE)
    np.savez(tmp_path / FILE, header=np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="is damaged or not a drift reference"):
        Reference.load(tmp_path / FILE)


def test_a_monitor_of_the_same_images_shows_no_shift(drift_tagger, draw, stub):
    monitor = DriftMonitor(stub, scored(draw(300, 0)), window=200)
    assert monitor.summary() == {"images": 0.0}
    feed(monitor, draw(150, 1))
    found = monitor.summary()
    assert found["images"] == 200  # the last ones
    assert found["novel_share"] == pytest.approx(0.05, abs=0.07)
    assert 0.2 < found["embedding_shift"] < 4
    assert found["tag_rate_shift"] < 4
    assert found["top_logit_superiority"] == pytest.approx(0.5, abs=0.1)
    assert "brightness_superiority" not in found  # no pictures were given


def test_a_monitor_shows_shifts_and_forgets_them(stub, draw):
    monitor = DriftMonitor(stub, scored(draw(300, 0)), window=100)
    feed(monitor, draw(100, 1, shift=2.0, rate=0.0))
    moved = monitor.summary()
    assert moved["embedding_shift"] > 10
    assert moved["tag_rate_shift"] > 3
    feed(monitor, draw(100, 2))
    assert monitor.summary()["embedding_shift"] < 4


def test_a_monitor_measures_pictures(drift_tagger, observed):
    monitor = DriftMonitor(drift_tagger, observed)
    dark = [Image.new("RGB", (40, 48), (9, 9, 9))] * 3
    monitor.add(observed.embeddings[:3], np.zeros((3, 3), np.float32), dark)
    found = monitor.summary()
    assert found["brightness_superiority"] == 0
    assert found["tags_given"] == 2
    assert all(np.isfinite(list(found.values())))


def test_a_monitor_takes_images_from_several_threads(stub, draw):
    monitor = DriftMonitor(stub, draw(50, 0), window=64)
    sample = draw(20, 1)
    threads = [threading.Thread(target=feed, args=(monitor, sample)) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert monitor.summary()["images"] <= 64
    for thread in threads:
        thread.join()
    assert monitor.summary()["images"] == 64


def logits_of(sample):
    """Logits that give the tags of a sample at thresholds of 0, of sizes as in its embeddings."""
    sign = np.where(sample.given, 1, -1)
    return (sign * (0.1 + np.abs(sample.embeddings[:, :12]))).astype(np.float32)


def scored(sample):
    """A sample with the confidences of these logits."""
    return replace(sample, confidences=confidences_of(logits_of(sample), sample.given))


def feed(monitor, sample):
    """Show a sample to a monitor in batches."""
    for start in range(0, len(sample), 16):
        part = sample.take(np.arange(start, min(start + 16, len(sample))))
        monitor.add(part.embeddings, logits_of(part))


@pytest.fixture
def stub(drift_tagger):
    """A model of the tags of a drawn sample: what a monitor asks of it."""
    head = replace(
        drift_tagger.head,
        tags=tuple(f"tag {k}" for k in range(12)),
        weight=np.zeros((12, 16), np.float32),
        bias=np.zeros(12, np.float32),
        thresholds=np.zeros(12, np.float32),
        C=np.ones(12),
    )
    return replace(drift_tagger, head=head)

"""Stores side by side."""

import numpy as np
import pytest

from retailtag.errors import DataError, UsageError
from retailtag.store import NOT_EXTRACTED, Absent, FeatureStore, JointSpec, JointStore, join


@pytest.fixture
def components(world, tmp_path):
    """Two stores of 12 images: of the second, one lacks, one is unreadable, one has new bytes."""
    rows = world.rows(12)
    first = FeatureStore.create_or_open(tmp_path, world.spec())
    first.append(rows.ids, rows.sha256, rows.embeddings)
    second = FeatureStore.create_or_open(tmp_path, world.spec(backbone="demo:clip", dim=3))
    sha256 = [*rows.sha256[:9], "0" * 64]
    wide = np.arange(30, dtype=np.float32).reshape(10, 3)
    second.append(rows.ids[:10], sha256, wide, [Absent(rows.ids[10], None, "is empty")])
    return first, second, rows, wide


def test_rows_are_the_parts_joined_end_to_end(components):
    first, second, rows, wide = components
    joint = JointStore([first, second])
    asked = [rows.ids[i] for i in (7, 2, 0)]
    view = joint.load(asked)
    assert view.found.all()
    np.testing.assert_array_equal(view.X, np.hstack([rows.embeddings[[7, 2, 0]], wide[[7, 2, 0]]]))
    assert joint.spec.dim == view.X.shape[1] == 8
    assert joint.digest_for(asked) == view.digest
    assert joint.n_rows == 9
    turned = JointStore([second, first]).load(asked).X
    np.testing.assert_array_equal(turned, np.roll(view.X, 3, axis=1))


def test_images_that_a_part_lacks_are_absent_with_its_reason(components):
    first, second, rows, _ = components
    for joint in (JointStore([first, second]), JointStore([second, first])):
        view = joint.load([*rows.ids, "stranger"])
        assert view.found.tolist() == [True] * 9 + [False] * 4
        assert view.X.shape == (9, 8)
        reasons = [view.absent[i] for i in (*rows.ids[9:], "stranger")]
        assert "bytes changed" in reasons[0]
        assert reasons[1:] == ["is empty", NOT_EXTRACTED, NOT_EXTRACTED]
    for image_id in (rows.ids[0], "stranger"):
        with pytest.raises(DataError, match="twice"):
            joint.load([image_id] * 2)


def test_time_counts_the_rows_that_are_used(components, monkeypatch):
    first, second, _, _ = components
    monkeypatch.setattr(FeatureStore, "seconds", property(lambda s: 2.0 * s.n_rows))
    assert JointStore([first, second]).seconds == 9 * (2.0 + 2.0)


def test_identity_is_the_ordered_list_of_the_parts(world):
    a, b = world.spec(), world.spec(backbone="demo:clip")
    digests = {JointSpec((a, b)).digest, JointSpec((b, a)).digest, a.digest, b.digest}
    assert len(digests) == 4
    assert JointSpec((a, b)).backbone == "demo:cnn+demo:clip"
    assert JointSpec((a, b)).digest == JointSpec((world.spec(), b)).digest
    assert JointSpec((a, world.spec(backbone="demo:clip", output="cls"))).digest not in digests
    with pytest.raises(UsageError, match=r"demo:cnn\+demo:clip mixes"):
        JointSpec((a, world.spec(backbone="demo:clip", dtype="float16")))


def test_one_store_is_itself(components):
    assert join(components[:1]) is components[0]

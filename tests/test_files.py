"""Writing leaves the whole file or what was there before, and names the user's file."""

import errno
import json
import os
from pathlib import Path

import pytest

from retailtag import files
from retailtag.errors import DataError
from retailtag.files import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    kind_of,
    make_folder,
    other_kind,
    parse_json,
    read_json,
    slug,
    sync_folder,
    write_text,
    write_whole,
)


def test_a_failed_block_leaves_what_stood_there(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def half():
        with write_whole(tmp_path / "a.txt") as handle:
            handle.write(b"new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        half()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def refuse_temporary(path, flags, mode=0o777):
    raise PermissionError(13, "Permission denied", path)


def refuse_rename(self, target):
    raise PermissionError(13, "Permission denied", str(self), None, str(target))


def refuse_sync(fd):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "refuse"),
    [
        (os, "open", refuse_temporary),
        (Path, "replace", refuse_rename),
        (os, "fsync", refuse_sync),
    ],
)
def test_an_error_of_the_system_names_the_users_file(tmp_path, monkeypatch, owner, name, refuse):
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(OSError, match=r"a\.txt") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert ".part" not in str(caught.value)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    def read_inside():
        with write_whole(tmp_path / "a.txt"):
            (tmp_path / "other.txt").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"other\.txt"):
        read_inside()


def test_long_names_stay_apart_as_folders():
    names = ["x" * 200 + end for end in "ab"]
    assert slug(names[0]) != slug(names[1])
    assert {len(slug(name)) for name in names} == {120}
    assert slug("x" * 120) == "x" * 120


def test_a_failing_clean_up_does_not_hide_what_failed_first(tmp_path, monkeypatch):
    def refuse_removal(self, missing_ok=False):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(os, "fsync", refuse_sync)
    monkeypatch.setattr(Path, "unlink", refuse_removal)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_folders_are_brought_to_the_disk_from_the_top(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append(Path(folder)))
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("call", "code"), [("open", errno.EACCES), ("fsync", errno.EINVAL), ("fsync", errno.EIO)]
)
def test_only_a_folder_that_cannot_be_synced_at_all_is_passed_over(
    tmp_path, monkeypatch, call, code
):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (POINTER, "a Git LFS pointer"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><p>", "a web page"),
        (bytes(257) + b"ustar\0", "a tar archive"),
        (b"BZh91AY&SY", "a bzip2 archive"),
        (b"PAR1", "a Parquet file"),
        (b"path,tags\n", ""),
        (b"BZhonours,tags\n", ""),
        (b"", ""),
    ],
)
def test_a_kind_is_told_by_the_first_bytes(head, kind):
    assert kind_of(head) == kind


def test_another_kind_is_named_with_its_remedy_and_the_expected_one_is_not():
    said = other_kind(POINTER, "a table")
    assert said == "is a Git LFS pointer, not a table; fetch it with git lfs pull"
    assert other_kind(b"PAR1", "a Parquet file") == ""
    assert other_kind(b"{", "a table", but=("JSON",)) == ""


DEEP = {
    "lists": "[" * 100_000,
    "closed lists": "[" * 500 + "]" * 500,
    "objects": '{"a":' * 100_000,
    "closed objects": '{"a":' * 500 + "1" + "}" * 500,
    "both": '[{"a":' * 60 + "1" + "}]" * 60,
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_json_of_too_deep_nesting_is_refused(kind, as_bytes):
    text = DEEP[kind].encode() if as_bytes else DEEP[kind]
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json(text)


def test_json_of_many_brackets_and_little_depth_is_read():
    rows = [{"tags": [["a"], {"b": [1]}]} for _ in range(200)]
    assert parse_json(json.dumps(rows)) == rows
    deepest = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert json.dumps(parse_json(deepest)) == deepest
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json(f"[{deepest}]")


def test_a_key_that_is_twice_in_a_json_object_is_named():
    with pytest.raises(ValueError, match="the key 'tags' is twice in one object"):
        parse_json('[{"path": "a", "tags": "red", "title": "", "tags": "blue"}]')


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b'"\xff"', "cannot be read as JSON: .*utf-8"),
        (b"9" * 5000, "cannot be read as JSON: Exceeds the limit"),
        (b"[" * 100_000, "cannot be read as JSON: its lists and objects are nested"),
        (b'{"seconds": NaN}', "cannot be read as JSON: Out of range float values"),
        (b'{"seconds": 1e999}', "cannot be read as JSON: Out of range float values"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b"\0" * 9, "cannot be read as JSON: Expecting value"),
        (rb'{"backbone": "\uD800"}', "cannot be read as JSON: .*surrogates not allowed"),
        (b" " * 100 + b"1", "cannot be read as JSON: it has 101 bytes, above the limit of 100"),
    ],
)
def test_a_json_file_that_cannot_be_used_is_one_sentence(tmp_path, text, fault):
    (tmp_path / "spec.json").write_bytes(text)
    with pytest.raises(DataError, match=f"spec.json {fault}"):
        read_json(tmp_path / "spec.json", 100 if b" " in text[:1] else MAX_JSON_BYTES)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "spec.json")
    with pytest.raises(DataError, match="it is not a file"):
        read_json(tmp_path / "spec.json")

"""The script of the clip-art catalogue, on packages of a few made-up drawings."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retailtag as rt
from retailtag.errors import DataError, Unavailable, UsageError

ROOT = Path(__file__).parents[1]
FREE = "http://web.resource.org/cc/PublicDomain"


@pytest.fixture(scope="module")
def clipart():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import clipart

        yield clipart


def svg(author, keywords, licence=FREE):
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    # The namespaces are entities, as Adobe Illustrator writes them.
    return f"""<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY ns_dc "http://purl.org/dc/elements/1.1/">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="&ns_dc;" xmlns:cc="http://web.resource.org/cc/"><metadata><rdf:RDF><cc:Work>
 <dc:title> A
 title</dc:title><dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
 <dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject><cc:license rdf:resource="{licence}"/>
</cc:Work></rdf:RDF></metadata></svg>""".encode()


def png(seed, size=(24, 24)):
    """A drawing unlike all others, half of it transparent."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), np.uint8)
    small[..., 3] = 255
    small[:2, :2, 3] = 0
    file = io.BytesIO()
    Image.fromarray(small, "RGBA").resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def package(path, kind, files, links):
    """A Debian package with the files and links of one format."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./usr/share/openclipart/{kind}/{name}.{kind}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(f"./usr/share/openclipart/{kind}/{name}.{kind}")
            member.type, member.linkname = tarfile.SYMTYPE, f"{target}.{kind}"
            archive.addfile(member)
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inner.getvalue()}
    ar = b"!<arch>\n"
    for name, data in parts.items():
        ar += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        ar += data + b"\n" * (len(data) % 2)
    path.write_bytes(ar)
    return path


def shelf():
    """Name, author and keywords of each drawing."""
    rows = [(f"animals/cat{i}", f"A{i}", ["House-Pets", "hash"]) for i in range(5)]
    rows += [(f"animals/dog{i}", f"B{i}", ["house pet", f"B{i}"]) for i in range(6)]
    rows += [(f"food/pear{i}", f"C{i}", ["fruit", f"rare{i}"]) for i in range(10)]
    rows += [(f"shapes/{chr(97 + i)}", "D", ["star, fruit"]) for i in range(25)]
    rows += [("food/apple", "E", ["fruit"]), ("food/apple_bw", "E", ["fruit", "grey"])]
    return rows


@pytest.fixture(scope="module")
def debs(tmp_path_factory):
    """Both packages."""
    rows = shelf()
    svgs = {name: svg(author, keywords) for name, author, keywords in rows}
    pngs = {name: png(seed) for seed, name in enumerate(svgs)}
    pngs["food/pear0"] = png(100, (640, 320))
    svgs["food/gpl"], pngs["food/gpl"] = svg("F", ["fruit"], "http://gnu.org/GPL/2.0/"), png(101)
    svgs["food/small"], pngs["food/small"] = svg("G", ["fruit"]), png(102, (24, 8))
    links = {"animals/pear": "../food/pear0"}
    folder = tmp_path_factory.mktemp("packages")
    return [
        package(folder / "png.deb", "png", pngs, links),
        # The SVG of a link may be a copy with keywords of its own.
        package(folder / "svg.deb", "svg", svgs | {"animals/pear": svg("C0", ["house pet"])}, {}),
    ]


@pytest.fixture(scope="module")
def packages(debs):
    """Their checksums."""
    digests = [hashlib.sha256(deb.read_bytes()).hexdigest() for deb in debs]
    return dict(zip(("openclipart-png", "openclipart-svg"), digests, strict=True))


@pytest.fixture(scope="module")
def built(clipart, debs, packages, tmp_path_factory):
    """Folder of the catalogue."""
    out = tmp_path_factory.mktemp("clipart") / "out"
    clipart.build(out, debs[::-1], test=0.3, packages=packages)
    return out


def test_tags_follow_the_rules(built):
    catalog = rt.read_catalog(built / "catalogue.csv")
    tags = {
        image: {t for t, label in zip(catalog.table.tags, row, strict=True) if label == 1}
        for image, row in zip(catalog.image_ids.tolist(), catalog.table.labels, strict=True)
    }
    # `hash`, rare keywords and the author's name are no tags; spellings and a plural are one.
    assert tags["animals/cat0"] == tags["animals/dog4"] == {"animals", "house pet"}
    # The folder of a link counts, and a comma divides keywords.
    assert tags["food/pear0"] == {"animals", "food", "fruit", "house pet"}
    assert tags["food/apple_bw"] == {"food", "fruit"}
    # Stars and shapes are of one group alone.
    stars = [name for name in tags if name.startswith("shapes/")]
    assert len(stars) == 20
    assert all(tags[name] == {"fruit"} for name in stars)
    assert not {"food/gpl", "food/small", "animals/pear"} & set(tags)
    assert catalog.title[0] == "A title"
    text = (built / "README.md").read_text(encoding="utf-8")
    for row in ("| links to another drawing | 1 |", "public domain | 1 |", "series | 5 |"):
        assert row in text


def test_groups_are_whole_in_both_splits(built):
    catalog = rt.read_catalog(built / "catalogue.csv")
    group = dict(zip(catalog.image_ids.tolist(), catalog.group.tolist(), strict=True))
    assert len({name for image, name in group.items() if image.startswith("shapes/")}) == 1
    assert group["food/apple"] == group["food/apple_bw"] != group["food/pear1"]
    assert set(catalog.split.tolist()) == {"train", "test"}
    for name in set(group.values()):
        assert len(set(catalog.split[catalog.group == name].tolist())) == 1


def test_large_drawings_are_scaled_and_stay_transparent(built):
    with Image.open(built / "images/food/pear0.png") as image:
        assert image.size == (320, 160)
        assert image.getchannel("A").getextrema() == (0, 255)
    assert (built / "images/food/apple.png").read_bytes() == png(46)


def test_a_second_run_gives_the_same_bytes(clipart, built, debs, packages, tmp_path):
    out = tmp_path / "again"
    clipart.build(out, debs, test=0.3, packages=packages)
    files = sorted(path.relative_to(built) for path in built.rglob("*.*"))
    assert len(files) == 46  # 43 drawings, two tables and a page
    for file in files:
        assert (out / file).read_bytes() == (built / file).read_bytes()


def test_what_is_missing_or_altered_is_named(clipart, debs, packages, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"nowhere.deb: there is no such file"):
        clipart.build(out, [tmp_path / "nowhere.deb"], test=0.3, packages=packages)
    debs[0].write_bytes(debs[0].read_bytes() + b"\n")
    with pytest.raises(
        DataError, match=r"png.deb, svg.deb: none has the SHA-256 .* openclipart-png"
    ):
        clipart.build(out, debs, test=0.3, packages=packages)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"apt-get is missing here; download .* with --deb"):
        clipart.build(out, [], test=0.3)
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: no such version' >&2\nexit 100\n", encoding="utf-8")
    apt.chmod(0o755)
    with pytest.raises(Unavailable, match=r"could not download .*\(E: no such version\)"):
        clipart.build(out, [], test=0.3)
    (out / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"images exists; give another --out"):
        clipart.build(out, [], test=0.3)

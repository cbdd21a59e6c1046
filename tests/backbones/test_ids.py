"""Ids: presets, canonical text, messages for wrong ids, and no import of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.backbones.ids import canonical, components_of, resolve_id
from retailtag.backbones.registry import PRESETS
from retailtag.errors import UsageError


@pytest.mark.parametrize(
    ("text", "model", "tag"),
    [
        ("timm:resnet50.a1_in1k", "resnet50", "a1_in1k"),
        ("timm:resnet50", "resnet50", ""),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "ViT-B-32", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B/32/openai", "ViT-B-32", "openai"),
        ("open_clip:RN50", "RN50", ""),
        ("demo:dino", "dino", ""),
    ],
)
def test_model_and_tag(text, model, tag):
    parsed = resolve_id(text)
    assert (parsed.model, parsed.tag) == (model, tag)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_expand_and_take_arguments(preset):
    assert str(resolve_id(preset)) == PRESETS[preset]
    assert resolve_id(f"{preset}?crop_pct=1").preprocess_args == {"crop_pct": 1}


def test_preset_models_and_weights_are_published():
    from retailtag.backbones.factory import published

    for preset in PRESETS.values():
        assert published(resolve_id(preset)).repo


values = st.one_of(
    st.booleans(),
    st.integers(-5, 500),
    st.floats(0.01, 9, allow_nan=False),
    st.sampled_from(["same", "avg"]),
    st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9), st.floats(0.01, 0.9)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["mean", "size", "pad_type", "img_size", "pool"]), values),
    st.randoms(),
)
def test_text_is_canonical_whatever_the_order(args, rng):
    def text(value):
        if isinstance(value, tuple):
            return ",".join(map(text, value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    parts = [f"{k}={text(v)}" for k, v in args.items()]
    rng.shuffle(parts)
    parsed = resolve_id("timm:resnet18" + ("?" + "&".join(parts) if parts else ""))
    assert dict(parsed.args) == args
    assert resolve_id(str(parsed)) == parsed
    assert {**parsed.model_args, **parsed.preprocess_args} == args


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dinov", r"unknown preset; did you mean dinov2\?"),
        ("tim:resnet50", r"unknown library; did you mean timm:\?"),
        ("openclip:RN50", r"unknown library; did you mean open_clip:\?"),
        ("resnet50", "unknown preset; .*An id is timm:MODEL.TAG, open_clip:MODEL/TAG, demo:cnn"),
        ("demo:dinov2", r"did you mean dino\?"),
        ("demo:cnn?foo=1", "demo models take no foo"),
        ("demo:cnn?sizes=64", r"demo models take no sizes; did you mean size\?"),
        ("demo:cnn?pool=zzz", "demo models take no pool"),
        ("timm:", "names no model"),
        ("timm:resnet18?size", "write argument 'size' as name=value"),
        ("timm:resnet18?size=1&size=2", "gives size twice"),
        ("", "unknown preset"),
    ],
)
def test_a_wrong_id_is_refused_with_a_hint(text, said):
    with pytest.raises(UsageError, match=said):
        resolve_id(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timm:resnet5", r"timm has no model resnet5; did you mean resnet50\?"),
        ("timm:resnet50.a1_in1", r"no weights a1_in1 for resnet50; did you mean a1_in1k\?"),
        ("open_clip:ViT-B32", r"open_clip has no model ViT-B32; did you mean ViT-B-32\?"),
        ("open_clip:ViT-B-32/laion2b", "no weights laion2b for ViT-B-32; did you mean laion2b"),
        ("open_clip:ViT-B-32", "does not say which weights; write open_clip:ViT-B-32/TAG"),
        ("timm:resnet18?banana=3&size=32", "timm cannot build .*banana"),
    ],
)
def test_unknown_models_tags_and_arguments_are_refused(text, said):
    from retailtag.backbones import load_backbone

    random = "banana" in text
    with pytest.raises(UsageError, match=said):
        load_backbone(text, random_weights=random)


@pytest.mark.parametrize("query", ["size=1025", "size=9999", "size=64,2000", "crop_pct=0.0001"])
def test_sizes_that_would_exhaust_the_memory_are_refused(query):
    from retailtag.backbones import load_backbone

    with pytest.raises(UsageError, match=r"Backbone demo:cnn\?.*(at most|more than)"):
        load_backbone(f"demo:cnn?{query}")


def test_resolving_imports_no_torch():
    code = (
        "import sys; from retailtag.backbones import resolve_id; resolve_id('clip'); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'open_clip')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ids_of_several_backbones():
    assert components_of("demo:cnn") == ("demo:cnn",)
    assert components_of("demo:cnn + clip?crop_pct=1e+0") == ("demo:cnn", "clip?crop_pct=1e+0")
    assert canonical("clip+demo:dino") == f"{PRESETS['clip']}+demo:dino"
    assert canonical("demo:dino+clip") != canonical("clip+demo:dino")
    with pytest.raises(UsageError, match="twice"):
        components_of(f"clip+{PRESETS['clip']}")
    with pytest.raises(UsageError, match="names no model"):
        canonical("demo:cnn+demo:")
    with pytest.raises(UsageError, match="name one backbone here"):
        resolve_id("demo:cnn+demo:clip")

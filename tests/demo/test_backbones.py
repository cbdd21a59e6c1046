import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer

from retailtag.demo.drawing.source import sample_source
from retailtag.demo.drawing.write import photographs
from retailtag.demo.networks import (
    DEMO_ARCHITECTURES,
    N_BUCKETS,
    build_demo_model,
    packaged_weights,
    tokenise,
)
from retailtag.demo.weights_file import pack, unpack
from retailtag.errors import UsageError

NAMES = list(DEMO_ARCHITECTURES)


@pytest.fixture(scope="module")
def source_batch():
    """Source products that no backbone was trained on: pixels (n, 3, 64, 64) and captions."""
    products = [sample_source(555, index) for index in range(40)]
    pixels = []
    for index, product in enumerate(products):
        picture = next(iter(photographs(product.look, 555, index, 1)))
        small = picture.resize((64, 64), Image.Resampling.BICUBIC)
        pixels.append(np.asarray(small, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return torch.from_numpy(np.stack(pixels)), [product.captions[0] for product in products]


def test_weights_are_under_ten_megabytes_together():
    assert sum(packaged_weights(name).stat().st_size for name in NAMES) < 10_000_000


def test_packed_text_matrices_come_back_within_half_a_level_and_images_as_they_were():
    torch.manual_seed(0)
    model = build_demo_model("clip", weights=None).half().float()
    state = model.state_dict()
    state["text.pieces.weight"][5:900] = 0
    back = unpack(pack(state), state)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        if name.startswith("text.") and tensor.ndim == 2:
            level = tensor.abs().amax(dim=1, keepdim=True) / 127
            assert ((back[name] - tensor).abs() <= 0.6 * level + 1e-6).all(), name
        else:
            assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_have_the_promised_shape_and_are_repeatable(name, source_batch):
    model = build_demo_model(name)
    with torch.inference_mode():
        first, again = model(source_batch[0]), build_demo_model(name)(source_batch[0])
    assert first.shape == (40, model.dim)
    assert model.dim == DEMO_ARCHITECTURES[name].dim
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert first.std(dim=0).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_packaged_weights_differ_from_random_ones(name, source_batch):
    torch.manual_seed(0)
    with torch.inference_mode():
        packaged = build_demo_model(name)(source_batch[0])
        random = build_demo_model(name, weights=None)(source_batch[0])
    assert not torch.allclose(packaged, random, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_follow_torchs_generator(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(next(build_demo_model(name, weights=None).trunk.parameters()).clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_weights_file_of_ones_own_is_read(name, source_batch):
    own = build_demo_model(name, weights=packaged_weights(name))
    with torch.inference_mode():
        assert torch.equal(own(source_batch[0]), build_demo_model(name)(source_batch[0]))


def test_trunks_are_timms():
    assert type(build_demo_model("cnn").trunk) is ResNet
    assert sum(len(getattr(build_demo_model("cnn").trunk, f"layer{i}")) for i in (1, 2, 3, 4)) == 8
    for name in ("dino", "clip"):
        assert type(build_demo_model(name).trunk) is VisionTransformer


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="choose from cnn, dino, clip"):
        build_demo_model("resnet50")


def test_a_caption_matches_its_own_image(source_batch):
    pixels, captions = source_batch
    model = build_demo_model("clip")
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model(pixels), dim=1)
        text = torch.nn.functional.normalize(model.encode_text(captions), dim=1)
    rank = (image @ text.T).argsort(dim=1, descending=True)
    own = (rank == torch.arange(40)[:, None]).nonzero()[:, 1].float()
    # Chance would put the caption at 19.5 of 0 to 39.
    assert own.mean() < 8
    assert (own == 0).float().mean() > 0.15


def test_text_embeddings_are_finite_repeatable_and_read_any_words():
    texts = ["article: Sneakers", "neck: V Neck", "", "ombré  CAPS!", "word " * 60]
    model = build_demo_model("clip")
    first = model.encode_text(texts)
    assert first.shape == (5, 128)
    assert torch.isfinite(first).all()
    assert torch.allclose(first, build_demo_model("clip").encode_text(texts))
    assert torch.allclose(first[:1], model.encode_text(texts[:1]), atol=1e-5)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_tokens_ignore_case_and_stay_in_range():
    pieces = tokenise(["Blue SNEAKERS", "blue sneakers"])
    assert torch.equal(pieces[0], pieces[1])
    assert pieces.max() == N_BUCKETS
    assert pieces.min() >= 0


def test_the_public_call_takes_weights_by_keyword():
    assert inspect.signature(build_demo_model).parameters["weights"].kind.name == "KEYWORD_ONLY"

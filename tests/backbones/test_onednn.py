"""Linear layers as convolutions agree with PyTorch's, forwards and backwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from retailtag.backbones import cpu, load_backbone, onednn
from retailtag.backbones.onednn import MIN_TOKENS, Attention, Linear, use_onednn

BACKBONES = (
    "timm:vit_tiny_patch16_224?depth=2&img_size=64",
    "demo:dino",
    "demo:clip",
    "open_clip:ViT-S-32?size=64",
)


@pytest.fixture
def convolved(monkeypatch):
    """Let any CPU count as one whose matrix product is slow; the shapes that were convolved."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(cpu, "has_slow_matmul", lambda: True)
    shapes = []
    conv2d = nn.functional.conv2d

    def listened(x, weight, bias=None, *args, **options):
        if x.shape[0] == x.shape[3] == 1 and weight.shape[2:] == (1, 1) and not args:
            shapes.append(tuple(x.shape))
        return conv2d(x, weight, bias, *args, **options)

    monkeypatch.setattr(nn.functional, "conv2d", listened)
    return shapes


def gradients(module, x, run=None):
    """Output of a module, and the gradients of its input and parameters."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = (run or module)(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(MIN_TOKENS, 24), (5, 40, 24), (2, 9, 11, 24)])
def test_a_linear_layer_by_convolution_is_the_same_layer(shape, bias, convolved):
    layer = nn.Linear(24, 40, bias=bias)
    fast = copy.deepcopy(layer)
    use_onednn(fast)
    x = torch.randn(shape)
    wanted, found = gradients(layer, x), gradients(fast, x)
    assert len(convolved) == 1
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert found[0].shape == (*shape[:-1], 40)
    transposed = torch.randn(24, MIN_TOKENS).T
    torch.testing.assert_close(fast(transposed), layer(transposed), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_products_without_a_gain_use_pytorchs_own_layer(convolved, monkeypatch):
    layer = Linear(8, 8)
    x = torch.randn(MIN_TOKENS, 8)
    few = (x[:-1], torch.randn(0, 8), torch.randn(8))
    for some in few:
        assert torch.equal(layer(some), nn.functional.linear(some, layer.weight, layer.bias))
    copy.deepcopy(layer).bfloat16()(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    torch.jit.trace(layer, x, check_trace=False)
    monkeypatch.setattr(onednn, "enabled", False)
    layer(x)
    monkeypatch.setattr(onednn, "enabled", True)
    monkeypatch.setattr(cpu, "has_slow_matmul", lambda: False)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert convolved == []


def test_a_graph_that_is_exported_holds_the_matrix_product(convolved):
    layer = Linear(8, 8)
    graph = torch.export.export(layer, (torch.randn(MIN_TOKENS, 8),)).graph
    called = {str(node.target) for node in graph.nodes}
    assert any("linear" in name for name in called)
    assert not any("conv" in name for name in called)


@pytest.mark.parametrize("train", [True, False])
def test_attention_by_convolution_is_the_same_attention(train, convolved):
    layer = nn.MultiheadAttention(24, 3, batch_first=True).train(train)
    nn.init.normal_(layer.in_proj_bias)
    fast = copy.deepcopy(layer)
    use_onednn(fast)
    assert type(fast) is Attention
    x = torch.randn(4, 40, 24)

    def found_by(attention):
        def run(x):
            return attention(x, x, x, need_weights=False, attn_mask=None)[0]

        return gradients(attention, x, run)

    wanted, found = found_by(layer), found_by(fast)
    assert len(convolved) == 2
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_attention_of_another_kind_is_left_to_torch(convolved):
    layer = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    fast = copy.deepcopy(layer)
    use_onednn(fast)
    x, y = torch.randn(2, 4, 40, 24)
    mask = torch.zeros(40, 40).fill_diagonal_(-1.0)
    for args, options in (
        ((x, y, y), {"need_weights": False}),
        ((x, x, x), {}),
        ((x, x, x), {"need_weights": False, "attn_mask": mask}),
        ((x, x, x), {"need_weights": False, "is_causal": True, "attn_mask": mask}),
    ):
        wanted, found = layer(*args, **options), fast(*args, **options)
        assert (wanted[1] is None) == (found[1] is None)
        torch.testing.assert_close(wanted[0], found[0])
    others = {"bias": {"add_bias_kv": True}, "keys": {"kdim": 8}, "order": {"batch_first": False}}
    for options in others.values():
        other = nn.MultiheadAttention(24, 3, **{"batch_first": True, **options})
        use_onednn(other)
        assert type(other) is nn.MultiheadAttention
    assert convolved == []


@pytest.mark.parametrize("backbone_id", BACKBONES)
def test_a_backbone_embeds_the_same(backbone_id, convolved, monkeypatch):
    backbone = load_backbone(backbone_id, random_weights=True)
    names = set(backbone.module.state_dict())
    size = backbone.preprocess.size
    pixels = torch.randint(0, 256, (40, 3, *size), dtype=torch.uint8)
    convolved.clear()
    fast = backbone.embed(pixels)
    assert len(convolved) >= 4
    monkeypatch.setattr(onednn, "enabled", False)
    plain = load_backbone(backbone_id, random_weights=True)
    assert set(plain.module.state_dict()) == names
    assert plain.weights_sha256 == backbone.weights_sha256
    torch.testing.assert_close(fast, plain.embed(pixels), rtol=1e-3, atol=1e-4)


def test_which_processors_multiply_slowly(tmp_path, monkeypatch):
    cases = {
        "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n": True,
        "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n": False,
        "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n": False,
    }
    for i, (text, slow) in enumerate(cases.items()):
        (tmp_path / str(i)).write_text(text)
        monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / str(i))
        cpu.flags.cache_clear()
        assert cpu.has_slow_matmul() == slow
    cpu.flags.cache_clear()
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "none")
    assert not cpu.has_slow_matmul()
    cpu.flags.cache_clear()

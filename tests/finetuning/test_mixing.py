import pytest
import torch

from retailtag.errors import UsageError
from retailtag.finetuning.losses import LabelCounts, parse_loss
from retailtag.finetuning.mixing import parse_mix


def _batch(n=8, h=12, w=10):
    """Image i is 10·i everywhere and has tag i alone: what it was mixed of can be read off."""
    pixels = (10 * torch.arange(n)).to(torch.uint8)[:, None, None, None].expand(n, 3, h, w)
    return pixels.clone(), torch.eye(n, dtype=torch.int8)


def test_none_leaves_the_batch_alone():
    pixels, targets = _batch()
    out, mixed = parse_mix("none")(pixels, targets, (0, 1, 2))
    assert out is pixels
    assert torch.equal(mixed, targets.float())


@pytest.mark.parametrize("text", ["mixup:alpha=1", "cutmix:p=1"])
def test_targets_are_mixed_as_the_images_are(text):
    pixels, targets = _batch()
    out, mixed = parse_mix(text)(pixels, targets, (0, 1, 2))
    assert out.dtype == torch.uint8
    values = 10 * torch.arange(8.0)
    torch.testing.assert_close(mixed.sum(1), torch.ones(8))
    torch.testing.assert_close(out.float().mean((1, 2, 3)), mixed @ values, atol=0.5, rtol=0)
    assert ((mixed > 0) & (mixed < 1)).any(1).sum() >= 5
    assert ((mixed > 0).sum(1) <= 2).all()


def test_cutmix_pastes_one_rectangle():
    pixels, targets = _batch()
    out, mixed = parse_mix("cutmix:p=1")(pixels, targets, (0, 0, 0))
    for i in range(8):
        foreign = out[i, 0] != pixels[i, 0]
        rows, columns = foreign.any(1), foreign.any(0)
        assert foreign.sum() == rows.sum() * columns.sum()
        assert mixed[i, i].item() == pytest.approx(1 - foreign.float().mean().item())


@pytest.mark.parametrize("text", ["mixup", "cutmix"])
def test_unknown_where_either_is(text):
    n = 64
    pixels, targets = torch.zeros(n, 3, 8, 8), torch.zeros(n, 2, dtype=torch.int8)
    targets[: n // 2, 0] = -1
    _, plain = parse_mix(f"{text}:p=0")(pixels, targets, (0, 0, 0))
    assert torch.equal(plain, targets.float())
    _, mixed = parse_mix(f"{text}:p=1,alpha=1")(pixels, targets, (0, 0, 0))
    assert (mixed[:, 1] == 0).all()
    assert set(mixed[:, 0].tolist()) == {-1.0, 0.0}
    known = int((mixed[:, 0] == 0).sum())
    assert n * 0.1 < known < n * 0.45  # about a quarter: both known
    # A loss over the batch counts exactly the known cells.
    cells = parse_loss("bce").build(LabelCounts.of(targets.numpy()))(torch.zeros(n, 2), mixed)
    assert int((cells > 0).sum()) == known + n


@pytest.mark.parametrize("text", ["mixup", "cutmix"])
def test_result_is_a_function_of_key_and_batch(text):
    batch = _batch()
    first, again = (parse_mix(text)(*batch, (1, 2, 3)) for _ in range(2))
    other = parse_mix(text)(*batch, (1, 2, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_mixup_takes_tokens_and_a_single_image():
    tokens = torch.randn(4, 7, 5)
    out, _ = parse_mix("mixup:alpha=1")(tokens, torch.eye(4, dtype=torch.int8), (0,))
    assert out.shape == tokens.shape
    assert not torch.equal(out, tokens)
    one, target = parse_mix("mixup")(tokens[:1], torch.ones(1, 2, dtype=torch.int8), (0,))
    torch.testing.assert_close(one, tokens[:1])
    torch.testing.assert_close(target, torch.ones(1, 2))


def test_shares_follow_the_beta_distribution():
    pixels, targets = torch.zeros(4000, 1), torch.zeros(4000, 1, dtype=torch.int8)
    pixels[::2] = 1.0
    share = parse_mix("mixup:alpha=0.5")(pixels, targets, (5,))[0].flatten().double()
    between = share[(share != 0) & (share != 1)]
    assert between.numel() > 1500
    assert between.mean().item() == pytest.approx(0.5, abs=0.03)
    assert between.var().item() == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.01)


@pytest.mark.parametrize("text", ["blend", "mixup:alpha=0", "cutmix:p=2", "mixup:share=1"])
def test_bad_text_names_the_option(text):
    with pytest.raises(UsageError, match="--mix"):
        parse_mix(text)

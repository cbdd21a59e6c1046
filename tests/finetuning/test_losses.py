import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_losses import (
    asymmetric,
    balanced_weight,
    bce,
    focal,
    mean_of_known,
    negative_tolerant,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from retailtag.errors import UsageError
from retailtag.finetuning.losses import LOSSES, DistributionBalanced, LabelCounts, parse_loss

COUNTS = LabelCounts(np.array([40, 3, 0, 500]), np.array([1000, 900, 1000, 1000]))
PRIOR = (COUNTS.positives + 0.5) / (COUNTS.known + 1)
NEUTRAL = {
    "bce": "bce",
    "asl": "asl:gamma_neg=0,clip=0",
    "focal": "focal:gamma=0,alpha=none",
    "db": "db:alpha=0.5,beta=0,lam=1,kappa=0",
}


def _data(seed=0, n=6, mixed=True):
    """Logits of every size, and targets that are known, unknown and mixed; a positive each."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (n, 4))
    targets = rng.choice([-1.0, 0.0, 0.0, 1.0, 0.3 if mixed else 1.0], (n, 4))
    targets[np.arange(n), rng.integers(0, 4, n)] = 1.0
    return logits, targets


def _cell(name, targets):
    """Reference of the loss at its defaults, for `mean_of_known`."""
    n_positive = np.maximum(COUNTS.positives, 1)

    def balanced(z, y, i, k):
        weight = balanced_weight(targets[i], k, n_positive, 0.1, 10.0, 0.2)
        return weight * negative_tolerant(z, y, 2.0, 0.05, PRIOR[k])

    return {
        "bce": lambda z, y, i, k: bce(z, y),
        "asl": lambda z, y, i, k: asymmetric(z, y, 0.0, 4.0, 0.05),
        "focal": lambda z, y, i, k: focal(z, y, 2.0, 0.25),
        "db": balanced,
    }[name]


def _mean(text):
    """The loss as training takes it: the mean over the known cells."""
    cells = parse_loss(text).build(COUNTS)
    return lambda z, y: cells(z, y).sum() / (y >= 0).sum().clamp_min(1)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_equals_its_formula(name):
    loss = _mean(name)
    for seed in range(5):
        logits, targets = _data(seed)
        expected = mean_of_known(_cell(name, targets), logits, targets)
        got = loss(torch.from_numpy(logits), torch.from_numpy(targets))
        assert got.item() == pytest.approx(expected, rel=1e-9)


def test_asymmetric_settings_are_used_where_they_belong():
    logits, targets = _data(3)
    loss = _mean("asl:gamma_pos=1.5,gamma_neg=0.5,clip=0.2")
    expected = mean_of_known(lambda z, y, i, k: asymmetric(z, y, 1.5, 0.5, 0.2), logits, targets)
    got = loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert got.item() == pytest.approx(expected, rel=1e-9)


def test_asymmetric_loss_is_that_of_timm_but_for_the_scale():
    from timm.loss import AsymmetricLossMultiLabel

    logits, targets = (torch.from_numpy(a).float() for a in _data(7, n=30, mixed=False))
    z, targets = logits.requires_grad_(), targets.clamp_min(0)
    theirs = AsymmetricLossMultiLabel(gamma_neg=3, gamma_pos=1, clip=0.1)(z, targets)
    ours = _mean("asl:gamma_neg=3,gamma_pos=1,clip=0.1")(z, targets)
    scale = ours.item() / theirs.item()
    assert scale == pytest.approx(1 / 4, rel=1e-5)  # they sum over tags, we average
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, theirs * scale)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("alpha", "text"), [(0.3, "0.3"), (-1, "none")])
def test_focal_loss_is_that_of_torchvision(alpha, text):
    from torchvision.ops import sigmoid_focal_loss

    logits, targets = (torch.from_numpy(a) for a in _data(8, mixed=False))
    targets = targets.clamp_min(0)
    theirs = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=1.5, reduction="mean")
    ours = _mean(f"focal:gamma=1.5,alpha={text}")(logits, targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@given(
    logits=arrays(np.float64, (3, 4), elements=st.floats(-30, 30)),
    targets=arrays(np.float64, (3, 4), elements=st.sampled_from([-1.0, 0.0, 0.25, 1.0])),
)
@settings(max_examples=25, deadline=None)
def test_each_loss_is_bce_at_its_neutral_settings(name, logits, targets):
    known = targets >= 0
    expected = 0.0
    if known.any():
        expected = binary_cross_entropy_with_logits(
            torch.from_numpy(logits[known]), torch.from_numpy(targets[known])
        ).item()
    got = _mean(NEUTRAL[name])(torch.from_numpy(logits), torch.from_numpy(targets))
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("text", [*LOSSES, "asl:gamma_pos=0.5,gamma_neg=0.5", "asl:clip=0"])
def test_gradients_equal_finite_differences(text):
    logits, targets = _data(1)
    loss = _mean(text)
    z = torch.from_numpy(logits).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, torch.from_numpy(targets)), z)
    loss(z, torch.from_numpy(targets)).backward()
    assert (z.grad[torch.from_numpy(targets) < 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_cells_change_nothing(name):
    logits, targets = _data(2)
    loss, changed = _mean(name), logits.copy()
    changed[targets < 0] = 77.0
    before, after = (
        loss(torch.from_numpy(z), torch.from_numpy(targets)) for z in (logits, changed)
    )
    assert before.item() == after.item()
    none = loss(torch.from_numpy(logits), torch.full((6, 4), -1, dtype=torch.int8))
    assert none.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "text", [*LOSSES, *NEUTRAL.values(), "asl:gamma_pos=0.5,gamma_neg=0.5", "focal:gamma=1"]
)
def test_extreme_logits_give_finite_values_and_gradients(text, dtype):
    sizes = [0.0, 1e-7, 1e-3, 1.0, 17.0, 89.0, 1e3, 65504.0]
    column = torch.tensor([*sizes, *(-s for s in sizes)], dtype=dtype)
    logits = column[:, None].expand(-1, 4).clone().requires_grad_()
    for target in (0, 1, -1):
        targets = torch.full(logits.shape, target, dtype=torch.int8)
        loss = _mean(text)(logits, targets)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all(), (target, gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_computes_the_loss_in_float32(name):
    logits, targets = _data(4)
    z, y = torch.from_numpy(logits).bfloat16(), torch.from_numpy(targets)
    loss = _mean(name)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(z, y)
    assert inside.dtype == torch.float32
    assert inside.item() == loss(z.float(), y).item()


def test_cells_add_up_to_the_mean_over_batches_of_unequal_knowledge():
    logits, targets = (torch.from_numpy(a) for a in _data(5, n=10))
    cells = parse_loss("asl").build(COUNTS)
    parts = [cells(logits[s], targets[s]).sum() for s in (slice(0, 3), slice(3, 10))]
    mean = _mean("asl")(logits, targets)
    assert (sum(parts) / (targets >= 0).sum()).item() == pytest.approx(mean.item())


def test_asymmetric_loss_drops_easy_negatives_and_fades_on_hopeless_ones():
    loss = _mean("asl")
    z = torch.tensor([[-3.0, 1.0, 9.0, 30.0]], requires_grad=True)
    loss(z, torch.zeros(1, 4)).backward()
    easy, hard, harder, hopeless = z.grad[0]
    assert easy == 0
    assert hard > harder > hopeless >= 0


def test_balanced_weights_are_largest_for_the_rare_tag_of_an_image():
    y = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])
    frequency = torch.from_numpy(1 / np.maximum(COUNTS.positives, 1))
    weights = DistributionBalanced().weights(frequency, y)
    assert weights[0, 1] > weights[0, 0] > weights[0, 3]
    torch.testing.assert_close(weights[1], torch.full((4,), 1.1).double())


def test_negative_tolerance_lets_go_of_low_scores():
    z = torch.full((1, 4), -2.0, requires_grad=True)
    gradients = {}
    for text in (NEUTRAL["db"], "db:alpha=0.5,beta=0,kappa=0,lam=5"):
        loss = _mean(text)(z, torch.zeros(1, 4))
        (gradients[text],) = torch.autograd.grad(loss, z)
    plain, tolerant = gradients.values()
    assert (tolerant < 0.01 * plain).all()


def test_balanced_loss_sees_the_logits_of_rare_tags_lowered():
    z, y = torch.zeros(1, 4), torch.zeros(1, 4)
    plain, shifted = (
        parse_loss(f"db:alpha=0.5,beta=0,lam=1,kappa={kappa}").build(COUNTS)(z, y)[0]
        for kappa in (0, 0.1)
    )
    push = plain - shifted  # of a negative, less where the tag is rarer
    assert push[2] > push[1] > push[0] > 0
    assert push[3].item() == pytest.approx(0, abs=1e-6)  # half of the images have tag 3


def test_counts_leave_unknown_cells_out():
    counts = LabelCounts.of(np.array([[1, 0, -1], [1, -1, -1], [0, 0, -1]], np.int8))
    assert counts.positives.tolist() == [2, 0, 0]
    assert counts.known.tolist() == [3, 2, 0]
    assert np.isfinite(counts.log_odds).all()
    assert counts.log_odds[2] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hinge", "--loss hinge is unknown; choose one of bce, asl"),
        ("asl:gamma=4", "asl takes gamma_pos=0, gamma_neg=4, clip=0.05"),
        ("bce:0.1", "unknown setting '0.1'"),
        ("focal:gamma=high", "gamma=high is not a number"),
        ("focal:gamma=1,gamma=2", "gives gamma twice"),
        ("asl:clip=1", "clip=1 is out of range"),
        ("bce:smoothing=0.1", "bce takes no settings"),
        ("la", "--loss la is unknown"),
        ("focal:gamma=0.5", "gamma=0.5: give 0, or 1 to 20"),
        ("focal:gamma=nan", "gamma=nan is out of range"),
        ("asl:clip=none", "clip=none"),
    ],
)
def test_bad_text_is_refused_with_its_remedy(text, message):
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        parse_loss(text)

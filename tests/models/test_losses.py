import numpy as np
import pytest
import torch
from support.simulated import TASK

from ichkit.core.errors import ConfigError
from ichkit.models.losses import LOSSES, make_loss
from ichkit.validation.metrics import weighted_log_loss

WEIGHTS = TASK.weight_array()
PREVALENCE = np.array([0.01, 0.05, 0.04, 0.05, 0.06, 0.14])


def random_case(seed=0, num_slices=50):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (num_slices, 6)).astype(np.float32))
    labels = torch.from_numpy((rng.random((num_slices, 6)) < 0.3).astype(np.float32))
    return logits, labels


@pytest.mark.parametrize("name", LOSSES)
def test_every_row_of_losses_keeps_its_contract(name):
    row, loss = LOSSES[name], make_loss(name, WEIGHTS, PREVALENCE)
    logits, labels = random_case()
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert row.name == name
    assert row.description.endswith(".")
    assert row.source
    assert value.ndim == 0
    assert (logits.grad != 0).all()
    assert loss((labels * 2 - 1) * 20, labels) < 1e-6 < value
    # The mean over slices: a batch twice is the batch once.
    torch.testing.assert_close(loss(logits.repeat(2, 1), labels.repeat(2, 1)), value)
    torch.testing.assert_close(loss(logits.bfloat16(), labels), value, rtol=0.02, atol=0)


def test_weighted_bce_is_the_score_of_the_competition():
    logits, labels = random_case()
    loss = make_loss("weighted-bce", WEIGHTS, PREVALENCE)(logits, labels).item()
    assert loss == pytest.approx(weighted_log_loss(logits.sigmoid().numpy(), labels.numpy(), WEIGHTS), rel=1e-5)


@pytest.mark.parametrize("name", ["weighted-bce", "bce", "focal"])
def test_with_soft_labels_the_best_probability_is_the_label(name):
    labels = torch.full((1, 6), 0.3)
    grid = torch.logit(torch.linspace(0.05, 0.95, 91))
    loss = make_loss(name, WEIGHTS, PREVALENCE)
    values = [loss(torch.full((1, 6), float(logit)), labels).item() for logit in grid]
    assert grid[int(np.argmin(values))].sigmoid().item() == pytest.approx(0.3, abs=0.011)


def test_ratio_bce_weighs_positives_by_the_negatives_for_each_at_most_twenty():
    loss = make_loss("ratio-bce", np.array([1.0, 0.0]), np.array([0.1, 0.5]))
    missed, false_alarm = (loss(torch.zeros(1, 2), torch.tensor([[y, 0.0]])).item() for y in (1.0, 0.0))
    assert missed / false_alarm == pytest.approx(9.0)
    rare = make_loss("ratio-bce", np.array([1.0]), np.array([0.0]))
    assert rare(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(20 * np.log(2))


def test_focal_discounts_what_is_right_already():
    focal, plain = (make_loss(name, WEIGHTS, PREVALENCE) for name in ("focal", "weighted-bce"))
    labels, logits = torch.ones(1, 6), torch.full((1, 6), 2.0)
    share = focal(logits, labels).item() / plain(logits, labels).item()
    assert share == pytest.approx((1 - torch.sigmoid(torch.tensor(2.0)).item()) ** 2, rel=1e-5)


def test_an_unknown_loss_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match=r'train\.loss: unknown "wieghted-bce". Did you mean "weighted-bce"\?'):
        make_loss("wieghted-bce", WEIGHTS, PREVALENCE)


@pytest.mark.parametrize("name", LOSSES)
def test_a_slice_without_known_labels_is_as_if_it_were_left_out(name):
    """Byte for byte in the value's gradient; the value itself is a sum in another order."""
    loss = make_loss(name, WEIGHTS, PREVALENCE)
    logits, labels = random_case()
    unknown = torch.arange(len(labels)) % 3 == 1
    gradients, values = [], []
    for rows, truth in (
        (slice(None), torch.where(unknown[:, None], torch.nan, labels)),
        (~unknown, labels[~unknown]),
    ):
        own = logits[rows].clone().requires_grad_()
        value = loss(own, truth)
        value.backward()
        gradients.append(own.grad)
        values.append(value)
    assert torch.equal(gradients[0][~unknown], gradients[1])
    assert not gradients[0][unknown].any()
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_label_has_no_part_in_the_loss_and_nothing_known_is_a_loss_of_zero(name):
    loss = make_loss(name, WEIGHTS, PREVALENCE)
    logits, labels = random_case()
    partly = labels.clone()
    partly[::2, 2] = torch.nan
    moved = logits.clone()
    moved[::2, 2] += 5.0
    assert torch.equal(loss(logits, partly), loss(moved, partly))
    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(labels, torch.nan))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_pos_weight_bce_is_that_of_torch_without_a_limit_and_the_literal_row_weighs_classes_by_their_odds():
    rare = np.array([390, 3260, 4196, 4616, 6208, 40000]) / 92616  # of the paper, and a common class
    ratios = torch.as_tensor((1 - rare) / rare, dtype=torch.float32)
    logits, labels = random_case()
    oracle = torch.nn.BCEWithLogitsLoss(pos_weight=ratios)(logits, labels)
    torch.testing.assert_close(make_loss("pos-weight-bce", WEIGHTS, rare)(logits, labels), oracle)
    assert ratios[0] > 200
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    literal = (each * torch.as_tensor(rare / (1 - rare), dtype=torch.float32)).mean()
    torch.testing.assert_close(make_loss("odds-bce", WEIGHTS, rare)(logits, labels), literal)
    nothing = make_loss("pos-weight-bce", np.array([1.0]), np.array([0.0]))(torch.zeros(1, 1), torch.zeros(1, 1))
    assert nothing.item() == pytest.approx(np.log(2))

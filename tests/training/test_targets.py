"""Soft targets and their loss: torch's cross-entropy, timm's targets, and what is promised of clips without labels."""

import pytest
import torch
import torch.nn.functional as F

from rhofast.training.targets import binary_cross_entropy, multi_hot_targets, soft_cross_entropy, soft_targets


def logits(count: int, classes: int) -> torch.Tensor:
    return (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))).requires_grad_()


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of)[0]


@pytest.mark.parametrize(("count", "classes"), [(4, 3), (32, 101), (16, 400)])
def test_labels_alone_have_the_gradient_of_class_numbers_bit_for_bit(count: int, classes: int) -> None:
    scores = logits(count, classes)
    label = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(1))
    label[1] = -100
    mine, reference = soft_cross_entropy(scores, soft_targets(label, classes)), F.cross_entropy(scores, label)
    assert torch.equal(gradient(mine, scores), gradient(reference, scores))
    assert mine.item() == pytest.approx(reference.item(), rel=1e-6)


def test_a_batch_without_labels_has_neither_loss_nor_gradient() -> None:
    scores = logits(4, 3)
    none = soft_cross_entropy(scores, soft_targets(torch.full((4,), -100), 3, smoothing=0.1))
    assert none.item() == 0 and not gradient(none, scores).any()


def test_smoothing_is_that_of_torch() -> None:
    scores, label = logits(8, 5), torch.tensor([0, 1, 2, 3, 4, -100, 1, 2])
    mine = soft_cross_entropy(scores, soft_targets(label, 5, smoothing=0.1))
    reference = F.cross_entropy(scores, label, label_smoothing=0.1)
    assert torch.allclose(mine, reference) and torch.allclose(gradient(mine, scores), gradient(reference, scores))


def test_mixed_targets_are_timm_s() -> None:
    mixup = pytest.importorskip("timm.data.mixup")
    label, share = torch.tensor([2, 0, 1, 1]), torch.tensor([0.3, 1.0, 0.5, 0.0])
    mine = soft_targets(label, 4, smoothing=0.1, partner=label.flip(0), share=share)
    assert torch.allclose(mine, mixup.mixup_target(label, 4, lam=share[:, None], smoothing=0.1))
    assert torch.allclose(mine.sum(dim=1), torch.ones(4))


def test_several_labels_are_mixed_as_the_clips_are() -> None:
    labels = torch.rand(4, 3, 5) < 0.5
    plain = multi_hot_targets(labels)
    assert torch.equal(plain, labels.flatten(0, 1).float())
    share = torch.rand(4, 3)
    mixed = multi_hot_targets(labels, share).view(4, 3, 5)
    for sample in range(4):
        for clip in range(3):
            own, other = labels[sample, clip].float(), labels[sample ^ 1, clip].float()
            expected = share[sample, clip] * own + (1 - share[sample, clip]) * other
            assert torch.allclose(mixed[sample, clip], expected)
    logits = torch.randn(12, 5)
    by_hand = -(plain * logits.sigmoid().log() + (1 - plain) * (1 - logits.sigmoid()).log()).mean()
    assert torch.allclose(binary_cross_entropy(logits, plain), by_hand)

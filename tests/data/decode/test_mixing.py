"""Erased and mixed clips against closed forms and timm's Mixup with the same numbers."""

import numpy as np
import pytest
import torch

from rhofast.data.decode.mixing import erase_boxes, mix_neighbors

B, P, T, SIZE = 4, 2, 3, 24


def pixels(b: int = B) -> torch.Tensor:
    """Return clips f32[B, P, C, T, H, W], channels-last in memory as DALI's."""
    drawn = torch.randn(b, P, T, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    return drawn.permute(0, 1, 5, 2, 3, 4)


def boxes(**places: list[int]) -> np.ndarray:
    out = np.zeros((B, P, 4), dtype=np.int32)
    for place, box in places.items():
        out[int(place[1]), int(place[2])] = box
    return out


def test_erased_rectangles_are_noise_in_every_frame_and_nothing_else_changes() -> None:
    x, before = pixels(), pixels()
    box, seeds = boxes(_01=[3, 5, 10, 8], _20=[0, 0, 20, 23]), np.arange(B * P, dtype=np.int64).reshape(B, P)
    erase_boxes(x, box, seeds)
    inside = torch.zeros(B, P, 1, 1, SIZE, SIZE, dtype=torch.bool)
    inside[0, 1, :, :, 5:13, 3:13] = inside[2, 0, :, :, :23, :20] = True
    assert torch.equal(x.masked_select(~inside), before.masked_select(~inside))
    noise = x[2, 0, :, :, :23, :20]
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
    assert not torch.equal(noise[:, 0], noise[:, 1])  # every frame has its own
    again = pixels()
    erase_boxes(again[2:3], box[2:3], seeds[2:3])  # in another batch: it follows from the seed alone
    assert torch.equal(again[2, 0], x[2, 0])


def test_without_seeds_the_mean_color_is_there() -> None:
    x = pixels()
    erase_boxes(x, boxes(_11=[1, 2, 3, 4]), None)
    assert not x[1, 1, :, :, 2:6, 1:4].any() and x[1, 1].count_nonzero() == x[1, 1].numel() - 3 * T * 12


@pytest.mark.parametrize("case", range(4))
def test_mixtures_are_timm_s(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.mixup")
    rng = np.random.default_rng(case)
    share, uses_cut = rng.random((B, P)).astype(np.float32), rng.random((B, P)) < 0.5
    cut = np.where(uses_cut[..., None], rng.integers(1, 11, (B, P, 4)), 0).astype(np.int32)
    share[uses_cut] = 1 - cut[uses_cut][:, 2] * cut[uses_cut][:, 3] / SIZE**2
    share[0, 0], cut[0, 0], uses_cut[0, 0] = 1.0, 0, False
    x, before = pixels(), pixels()
    mix_neighbors(x, share, cut)
    for b, p in ((b, p) for b in range(0, B, 2) for p in range(P)):
        pair, own = slice(b, b + 2), share[b : b + 2, p].copy()
        cuts = iter([((top, top + h, left, left + w), own[which])
                     for which, (left, top, w, h) in enumerate(cut[pair, p].tolist()) if w])  # fmt: skip
        monkeypatch.setattr(timm.Mixup, "_params_per_elem", lambda *_, of=(own, uses_cut[pair, p]): of)
        monkeypatch.setattr(timm, "cutmix_bbox_and_lam", lambda *_, cuts=cuts, **__: next(cuts))
        theirs = before[pair, p].flatten(1, 2).clone()  # frames as channels
        _, target = timm.Mixup(mode="elem", num_classes=2, label_smoothing=0.0)(theirs, torch.tensor([0, 1]))
        assert torch.allclose(x[pair, p].flatten(1, 2), theirs, atol=1e-6)
        assert torch.allclose(target[:, 0], torch.tensor([share[b, p], 1 - share[b + 1, p]]))


def test_a_share_of_1_leaves_clips_as_they_are_bit_for_bit() -> None:
    x = pixels()
    mix_neighbors(x, np.ones((B, P), dtype=np.float32), np.zeros((B, P, 4), dtype=np.int32))
    assert torch.equal(x, pixels())


def test_an_odd_batch_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="3 videos cannot be mixed in pairs"):
        mix_neighbors(pixels(3), np.ones((3, P), dtype=np.float32), np.zeros((3, P, 4), dtype=np.int32))

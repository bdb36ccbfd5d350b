"""The linear probe in closed form: the fit is optimal, and the penalty is chosen without the test shards."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError
from rhofast.evaluation.knn import evaluate_neighbors
from rhofast.evaluation.leakage import overlap, source_digests
from rhofast.evaluation.linear_probe import evaluate_linear
from rhofast.evaluation.logistic_regression import fit_logistic, standardize, sweep, unstandardize
from rhofast.evaluation.task import open_task
from rhofast.evaluation.validation import validation_mask
from rhofast.training.classify import train_classifier
from rhofast.training.trainer import train
from tests.helpers.program import run_ranks
from tests.helpers.shards import TINY_PAGE, encode_mjpeg, frame_pixels, write_shards

SETTINGS = [
    *("backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2", "clips.frame_stride=2"),
    *("clips.fps=12", "eval.test_views=2", "data.threads=2", "data.decode_threads=1"),
]


def problem(
    rows: int = 400, classes: int = 5, width: int = 20, apart: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping Gaussian blobs of unequal spread."""
    torch.manual_seed(0)
    y = torch.randint(classes, (rows,))
    x = torch.randn(classes, width)[y] * apart + torch.randn(rows, width) * torch.linspace(0.5, 2, width)
    return x, y


def gradient_of(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.int64],
    w: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    l2: float,
) -> float:
    """The largest entry of the objective's gradient, by hand."""
    logits = x @ w.T + b
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - np.eye(len(b))[y]) / len(y)
    return float(max(np.abs(error.T @ x + l2 * w).max(), np.abs(error.sum(axis=0)).max()))


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_a_fit_is_at_the_minimum(penalty: float) -> None:
    x, y = problem()
    found = fit_logistic(x.double(), y, 5, penalty=penalty)
    assert gradient_of(x.double().numpy(), y.numpy(), found.weight.numpy(), found.bias.numpy(), penalty) < 1e-5
    again = fit_logistic(x.double(), y, 5, penalty=penalty, start=fit_logistic(x.double(), y, 5, penalty=10.0))
    assert torch.allclose(found.weight, again.weight, atol=1e-2)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_it_predicts_what_scikit_learn_predicts(penalty: float) -> None:
    x, y = problem(1000)
    rows, test = x[:600], x[600:]
    theirs = LogisticRegression(C=1 / (penalty * 600), max_iter=2000, tol=1e-8).fit(rows.numpy(), y[:600])
    ours = fit_logistic(rows, y[:600], 5, penalty=penalty)
    assert np.allclose(ours.weight.numpy(), theirs.coef_, atol=2e-3)
    accuracy = float((ours(test).argmax(dim=1) == y[600:]).float().mean())
    assert accuracy == pytest.approx(theirs.score(test.numpy(), y[600:].numpy()), abs=0.005)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_with_several_classes_per_row_each_is_fitted_as_scikit_learn_fits_it_alone(penalty: float) -> None:
    x, y = problem()
    held = torch.stack([y == 0, y % 2 == 1, (y > 2) | (x[:, 0] > 0.5)], dim=1)
    ours = fit_logistic(x, held, 3, penalty=penalty)
    for c in range(3):
        theirs = LogisticRegression(C=1 / (penalty * 400), max_iter=2000, tol=1e-8).fit(x.numpy(), held[:, c].numpy())
        assert np.allclose(ours.weight[c].numpy(), theirs.coef_[0], atol=2e-3)
        assert float(ours.bias[c]) == pytest.approx(float(theirs.intercept_[0]), abs=2e-3)


def test_unstandardize_undoes_the_standardization() -> None:
    x, y = problem()
    x = x * torch.linspace(0.01, 100, 20) + 7
    x[:, 3] = 2.5  # a feature that does not vary
    mean, scale = standardize(x)
    assert torch.allclose(((x - mean) / scale).square().mean(dim=0)[4:], torch.ones(16), atol=1e-3)
    inside = fit_logistic((x - mean) / scale, y, 5, penalty=1e-2)
    assert torch.allclose(unstandardize(inside, mean, scale)(x), inside((x - mean) / scale), atol=1e-3)


def test_a_sweep_takes_the_penalty_that_is_best_on_the_validation_rows() -> None:
    x, y = problem(120, width=80, apart=0.25)  # few rows, many features: little penalty overfits
    held = torch.arange(120) % 4 == 0
    whole, penalty, tried = sweep(x, y, 5, held)
    assert {"penalty": penalty} == max(tried, key=lambda one: (one.score, -one.loss)).setting and penalty > 1e-3
    expected = fit_logistic(x, y, 5, penalty=penalty)
    assert torch.allclose(whole.weight, expected.weight, atol=1e-3)


def test_the_validation_part_is_a_fifth_of_each_class_and_keeps_sources_together() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [100, 50, 1])
    digest = np.array([rng.bytes(15) + b"x" for _ in label], dtype="S16")
    held = validation_mask(digest, label, 0.2)
    assert [int(held[label == c].sum()) for c in range(3)] == [20, 10, 0]
    order = rng.permutation(len(label))
    assert np.array_equal(validation_mask(digest[order], label[order], 0.2), held[order])
    digest[1::2] = digest[::2][: len(digest[1::2])]  # each source twice
    held = validation_mask(digest, label, 0.2)
    assert np.array_equal(held[1::2], held[::2][: len(held[1::2])])


@pytest.fixture
def held_out(tmp_path: Path) -> ShardSet:
    members = [encode_mjpeg([frame_pixels(video, 23 - frame) for frame in range(20)]) for video in range(6)]
    return write_shards(tmp_path / "held_out", members, labels=[video % 3 for video in range(6)])


def test_a_probe_of_random_features_reports_all_results(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    seen: list[tuple[int, int]] = []
    fits: list[tuple[int, int]] = []
    task = open_task("random", held_out.root, train=shards.root, overrides=SETTINGS)
    result = evaluate_linear(
        task,
        untrained=True,
        progress=lambda done, total: seen.append((done, total)),
        on_fit=lambda done, total: fits.append((done, total)),
    )
    assert fits == [(fit, 12) for fit in range(1, 13)] * 2
    assert result.shards["test"]["samples"] == 6 and result.shards["train"]["digest"] == shards.info.digest
    assert result.trained == result.untrained  # both are the same random network
    assert result.trained.samples == 6 and np.sum(result.trained.confusion) == 6
    assert result.settings["test_views"] == 2 and len(result.chosen["sweep"]) > 5
    assert seen[-1] == (38, 38) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    kept = result.to_json()
    assert kept["step"] == 0 and "untrained" in kept["origin"]
    assert kept["trained"]["chance"]["top-1"] == pytest.approx(1 / 3)


def test_test_videos_that_are_in_the_training_shards_are_refused_or_named(
    shards: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    other = [encode_mjpeg([frame_pixels(20 + video, frame) for frame in range(8)]) for video in range(2)]
    mixed = write_shards(tmp_path / "mixed", [other[0], members[7], other[1], members[2]], labels=[0, 1, 2, 2])
    assert overlap(shards, mixed) == ["v1", "v3"]
    assert overlap(mixed, shards) == ["v2", "v7"]
    clean = write_shards(tmp_path / "clean", other, labels=[0, 1])
    assert overlap(shards, clean) == []
    assert source_digests(mixed)[1] == source_digests(shards)[7]
    with pytest.raises(ConfigError, match=r"2 of 4 test samples .*: v1, v3"):
        open_task("random", mixed.root, train=shards.root, overrides=SETTINGS)
    task = open_task("random", mixed.root, train=shards.root, overrides=SETTINGS, allow_overlap=True)
    assert len(task.notes) == 1 and "v1, v3" in task.notes[0]


def test_pretraining_shards_count_too_and_missing_ones_are_reported(
    shards: ShardSet, held_out: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config_file = tmp_path / "tiny.toml"
    config_file.write_text(TINY_PAGE)
    seen = write_shards(tmp_path / "seen", members[:8], labels=[video % 3 for video in range(8)])
    train(load_config(config_file, [f"out={tmp_path}", f"data.train={seen.root}"]))
    test = write_shards(tmp_path / "test", members[7:], labels=[video % 3 for video in range(6)])
    assert open_task(tmp_path / "tiny", held_out.root).notes == ()
    assert open_task(tmp_path / "tiny", held_out.root, train=shards.root).notes == ()
    with pytest.raises(ConfigError, match=r"1 of 6 test samples .*test is cut from a video that is in .*seen, too: v0"):
        open_task(tmp_path / "tiny", test.root, train=held_out.root)
    seen.root.rename(tmp_path / "moved")
    notes = open_task(tmp_path / "tiny", test.root, train=held_out.root).notes
    assert len(notes) == 1 and "not compared with the videos of the pretraining run" in notes[0]
    assert "seen: no such folder" in notes[0]


def test_a_test_that_the_network_cannot_take_is_refused_before_the_training(
    shards: ShardSet, held_out: ShardSet
) -> None:
    settings = ["backbone.name=s3d", "augment.size=32", "clips.num_frames=8", "eval.test_size=16"]
    task = open_task("random", held_out.root, train=shards.root, overrides=settings)
    with pytest.raises(ConfigError, match=r"test input: backbone s3d takes clips .* not 8 frames of 16 x 16"):
        evaluate_linear(task)
    with pytest.raises(ConfigError, match="test input: backbone s3d"):
        train_classifier(task, kind="finetune")


def test_a_test_class_that_training_lacks_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "four", [encode_mjpeg([frame_pixels(9, 3)] * 4)] * 4, labels=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match="'class 3' is not a class of"):
        open_task("random", other.root, train=shards.root, overrides=SETTINGS)


TWO_RANKS = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from rhofast.evaluation.task import open_task
from rhofast.evaluation.linear_probe import evaluate_linear
from rhofast.evaluation.knn import evaluate_neighbors

state = PartialState(cpu=True)
kinds, train, test, out, *settings = sys.argv[1:]
task = open_task("random", test, train=train, overrides=settings)
evaluate = {"linear": evaluate_linear, "knn": evaluate_neighbors}
found = {kind: evaluate[kind](task).to_json()["trained"] for kind in kinds.split(",")}
assert state.num_processes == 2
(Path(out) / f"{state.process_index}.json").write_text(json.dumps(found))
"""


def test_two_ranks_find_what_one_finds(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "two.py").write_text(TWO_RANKS)
    run_ranks(tmp_path / "two.py", "linear,knn", shards.root, held_out.root, tmp_path, *SETTINGS)
    task = open_task("random", held_out.root, train=shards.root, overrides=SETTINGS)
    alone = {one.kind: one.to_json()["trained"] for one in (evaluate_linear(task), evaluate_neighbors(task))}
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


def test_two_ranks_find_what_one_finds_of_several_labels(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    halves = [TimedLabel(0, None, 1.0), TimedLabel(1, 1.0, None)]
    sets = []
    for name, count, frames in (("train", 9, 24), ("test", 5, 20)):
        videos = [encode_mjpeg([frame_pixels(video, frame) for frame in range(frames)]) for video in range(count)]
        sets.append(write_shards(tmp_path / name, videos, further=[halves[: video % 3] for video in range(count)]))
    (tmp_path / "two.py").write_text(TWO_RANKS)
    run_ranks(tmp_path / "two.py", "linear", *(each.root for each in sets), tmp_path, *SETTINGS)
    alone = evaluate_linear(open_task("random", sets[1].root, train=sets[0].root, overrides=SETTINGS)).to_json()
    assert list(alone["trained"]["measures"]) == ["mAP"] and len(alone["trained"]["per_class"]) == 2
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"linear": alone["trained"]}

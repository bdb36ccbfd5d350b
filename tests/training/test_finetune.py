"""Classifiers through the loader: they learn, resume to the same bits, agree over ranks, and refuse what leaks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from rhofast.checkpoint.backbone import backbone_of
from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError, NotFiniteError, ResumeError
from rhofast.evaluation.features import extract_features
from rhofast.evaluation.knn import evaluate_neighbors
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.linear_probe import evaluate_linear
from rhofast.evaluation.multilabel import classes_in_views
from rhofast.evaluation.retrieval import evaluate_retrieval
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask, open_task
from rhofast.evaluation.validation import validation_mask
from rhofast.training.classify import Stopped, train_classifier
from rhofast.training.optim import learning_rate
from rhofast.training.targets import binary_cross_entropy, soft_cross_entropy
from rhofast.training.trainer import train
from tests.helpers.metrics import find_metric
from tests.helpers.program import run_ranks
from tests.helpers.reference import needs_vectors, numbers
from tests.helpers.results import read_one
from tests.helpers.shards import ROOT, TINY_PAGE, encode_mjpeg, frame_pixels, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")

EVAL_CONFIG = """
name = "classifier"
[augment]
crop = "short_side"
size = 16
short_side = [18, 20]
color = 0.0
gray = 0.0
blur = 0.0
[optim]
name = "sgd"
base_lr = 0.1
base_batch = 4
warmup_epochs = 0
weight_decay = 0.0
[train]
batch_size = 4
steps = 6
log_steps = 1
trackers = []
checkpoint_steps = 3
[eval]
test_views = 2
test_crops = 3
batch_size = 12
dropout = 0.2
batch_norm = "frozen"
[data]
threads = 2
decode_threads = 1
[clips]
num_frames = 2
frame_stride = 2
fps = 12
"""
TINY = ("backbone.name=slow_r18", "backbone.width=4")


def task(shards: ShardSet, test: ShardSet, tmp_path: Path, *settings: str) -> EvalTask:
    path = tmp_path / "eval.toml"
    path.write_text(EVAL_CONFIG)
    return open_task("random", test.root, train=shards.root, config_file=path, overrides=[*TINY, *settings])


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def test_a_probe_trains_the_head_alone_and_finetuning_everything(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    for kind in ("linear", "finetune"):
        opened = task(shards, held_out, tmp_path, f"name={kind}")
        before = {key: value.clone() for key, value in opened.model.backbone.state_dict().items()}
        result = train_classifier(opened, kind=kind)  # type: ignore[arg-type]
        assert isinstance(result, Evaluation)
        assert (result.kind, result.trained.samples, result.trained.chance["top-1"]) == (kind, 6, 1 / 3)
        assert result.folder == Path("runs/random/evals") / kind
        backbone = backbone_of(load_checkpoint(latest_checkpoint(result.folder)), "run")  # type: ignore[arg-type]
        moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        assert not any("running" in key for key in moved)
        assert bool(moved) == (kind == "finetune")
        assert all(find_metric(name) for line in metrics(result.folder) for name in line if name != "kind")
        assert [line["step"] for line in metrics(result.folder)] == [1, 2, 3, 4, 5, 6]


def test_batch_statistics_are_taken_by_name_as_the_release_does(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    opened = task(shards, held_out, tmp_path, "eval.batch_norm=local")
    before = {key: value.clone() for key, value in opened.model.backbone.state_dict().items()}
    result = train_classifier(opened, kind="linear")
    backbone = backbone_of(load_checkpoint(latest_checkpoint(result.folder)), "run")  # type: ignore[arg-type, union-attr]
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all("running" in key or "num_batches" in key for key in moved)


def test_a_resumed_training_ends_with_the_same_weights(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_classifier(task(shards, held_out, tmp_path, "name=whole"), kind="finetune")
    stopped = train_classifier(task(shards, held_out, tmp_path, "name=parts", "train.max_hours=1e-9"), kind="finetune")
    assert isinstance(stopped, Stopped) and stopped.step == 1
    with pytest.raises(ConfigError, match="--resume"):
        train_classifier(task(shards, held_out, tmp_path, "name=parts"), kind="finetune")
    with pytest.raises(ResumeError, match="kind was 'finetune'"):
        train_classifier(task(shards, held_out, tmp_path, "name=parts"), kind="linear", resume=True)
    resumed = train_classifier(task(shards, held_out, tmp_path, "name=parts"), kind="finetune", resume=True)
    assert isinstance(whole, Evaluation) and isinstance(resumed, Evaluation)
    one, two = (load_checkpoint(latest_checkpoint(at.folder)).method for at in (whole, resumed))  # type: ignore[arg-type]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert whole.trained == resumed.trained
    again = train_classifier(task(shards, held_out, tmp_path, "name=parts"), kind="finetune", resume=True)
    assert isinstance(again, Evaluation) and again.trained == whole.trained  # nothing is trained twice


def test_a_loss_that_is_not_finite_ends_it_and_is_not_saved(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError, match="not finite"):
        train_classifier(task(shards, held_out, tmp_path, "optim.base_lr=1e9"), kind="finetune")
    folder = latest_checkpoint(tmp_path / "runs/random/evals/classifier")
    assert folder is None or all(value.isfinite().all() for value in load_checkpoint(folder).method.values())


def launch_two(command: list[str], tmp_path: Path, settings: Iterable[str] = TINY) -> None:
    """Run a command of `rhofast eval` in two processes, with the config that `task` has written, as `two`."""
    given = [text for setting in ("name=two", *settings) for text in ("--set", setting)]
    run_ranks("-m", "rhofast", *command, "--config", tmp_path / "eval.toml", *given, cwd=tmp_path)


def test_two_ranks_give_what_one_gives(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    one = train_classifier(task(shards, held_out, tmp_path, "name=one"), kind="finetune")
    assert isinstance(one, Evaluation)
    command = ["eval", "finetune", "random", "--train", str(shards.root), "--test", str(held_out.root)]
    launch_two(command, tmp_path)
    two = tmp_path / "runs/random/evals/two"
    assert read_one(two, "finetune")["trained"] == one.to_json()["trained"]
    assert next((two / "results").glob("finetune-*-confusion.png")).stat().st_size > 1000
    losses = [[line["loss"] for line in metrics(run)] for run in (one.folder, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_repeats_put_several_clips_of_a_video_into_a_batch(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is drawn for clips, and each clip has the target of its video."""
    seen = []
    monkeypatch.setattr(
        "rhofast.training.finetune.soft_cross_entropy",
        lambda logits, target: seen.append((logits.shape, target.argmax(dim=1))) or soft_cross_entropy(logits, target),
    )
    settings = ("eval.repeats=3", "eval.label_smoothing=0.1", "train.steps=2")
    result = train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune")
    assert isinstance(result, Evaluation)
    for shape, classes in seen:
        assert shape == (12, 3) and torch.equal(classes, classes[::3].repeat_interleave(3))
    for other, message in (("repeats=2", "num_clips was 3, is 2"), ("label_smoothing=0", "label_smoothing was 0.1")):
        with pytest.raises(ResumeError, match=message):
            train_classifier(task(shards, held_out, tmp_path, *settings, f"eval.{other}"), kind="finetune", resume=True)


@pytest.fixture
def timed(tmp_path: Path) -> tuple[ShardSet, ShardSet]:
    """Return thirteen videos, and six others, whose class 0 holds in their first half, class 1 in the second."""
    return timed_sets(tmp_path, without=(4,))


def timed_sets(tmp_path: Path, *, without: Sequence[int]) -> tuple[ShardSet, ShardSet]:
    """Return the sets of `timed`, with other videos that have no label."""
    halves = [TimedLabel(0, None, 1.0), TimedLabel(1, 1.0, None)]
    sets = []
    for name, count, seconds in (("timed", 13, 24), ("timed_test", 6, 20)):
        pixels = [[frame_pixels(video, frame) for frame in range(seconds)] for video in range(count)]
        further = [[] if video in without else halves[: video % 2 + 1] for video in range(count)]
        sets.append(write_shards(tmp_path / name, [encode_mjpeg(one) for one in pixels], further=further))
    return sets[0], sets[1]


def test_several_labels_are_learned_by_what_holds_while_a_clip_is_shown(
    timed: tuple[ShardSet, ShardSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "rhofast.training.multilabel.binary_cross_entropy",
        lambda logits, target: seen.append(target) or binary_cross_entropy(logits, target),
    )
    opened = task(*timed, tmp_path, "train.steps=9", "clips.frame_stride=4", "eval.repeats=2")
    result = train_classifier(opened, kind="multilabel")
    assert isinstance(result, Evaluation)
    assert (result.kind, result.trained.samples, list(result.trained.measures)) == ("multilabel", 6, ["mAP"])
    assert list(result.trained.per_class) == ["class 0", "class 1"]
    assert result.trained.chance["mAP"] == pytest.approx((5 / 6 + 3 / 6) / 2)  # video 4 has no label
    found = {tuple(row) for target in seen for row in target.tolist()}
    assert found == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)}  # a clip over the middle has both
    assert all(target.shape == (8, 2) for target in seen)
    assert result.to_json()["trained"]["confusion"] is None
    assert all(0 <= line["top1"] <= 1 for line in metrics(result.folder))


def test_several_labels_are_learned_on_frozen_features_and_scored_as_scikit_learn_does(
    timed: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    opened = task(*timed, tmp_path, "train.steps=9", "eval.test_views=3", "eval.validation_epochs=1")
    before = {key: value.clone() for key, value in opened.model.backbone.state_dict().items()}
    result = train_classifier(opened, kind="linear")
    assert isinstance(result, Evaluation) and result.kind == "linear"
    backbone = backbone_of(load_checkpoint(latest_checkpoint(result.folder)), "run")  # type: ignore[arg-type]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    state = load_checkpoint(latest_checkpoint(result.folder)).method  # type: ignore[arg-type]
    assert state["head.bias"].abs().max() > 0
    features = extract_features(backbone.eval(), timed[1], opened.config, views=3, crops=3)  # [N, views, D]
    logits = torch.from_numpy(features.values) @ state["head.weight"].T + state["head.bias"]
    scores = logits.sigmoid().amax(dim=1).numpy()
    held = np.array([[video != 4, video != 4 and video % 2 == 1] for video in range(6)])
    expected = [average_precision_score(held[:, c], scores[:, c]) for c in range(2)]
    assert list(result.trained.per_class.values()) == pytest.approx(expected, abs=1e-6)
    assert result.trained.measures == {"mAP": pytest.approx(np.mean(expected), abs=1e-6)}
    assert [set(point) for point in result.chosen["validation"]] == [{"epoch", "score"}] * 3


def test_several_labels_in_closed_form_are_what_scikit_learn_fits_and_scores(tmp_path: Path) -> None:
    """A clip is fitted to what holds while it is shown; the penalty is chosen by what holds at any time of a video."""
    train_set, test_set = timed_sets(tmp_path, without=(2, 4, 9))
    opened = task(
        train_set, test_set, tmp_path, "eval.views=3", "eval.test_views=2", "eval.test_crops=1", "clips.frame_stride=4"
    )
    result = evaluate_linear(opened)
    assert (result.kind, list(result.trained.measures)) == ("linear", ["mAP"])
    backbone, config = opened.model.backbone.eval(), opened.config
    rows = extract_features(backbone, train_set, config, views=3).values
    mean, scale = rows.mean(axis=(0, 1)), rows.std(axis=(0, 1))
    scale[scale < 1e-6] = 1  # features that are 0 for all
    rows = (rows - mean) / scale
    start = np.array([0, 5, 10])  # clips of 8 frames, at 0, a third and two thirds of the 16 that they leave of 24
    shown = np.stack([start < 12, start + 7 >= 12], axis=1)  # which halves the clips show
    has = np.array([[True, video % 2 == 1] if video not in (2, 4, 9) else [False, False] for video in range(13)])
    held = shown[None] & has[:, None]
    assert np.array_equal(classes_in_views(train_set, np.arange(13), config, 3), held)
    assert not np.array_equal(held[1], np.broadcast_to(has[1], (3, 2)))
    test_rows = (extract_features(backbone, test_set, config, views=2).values - mean) / scale
    part = validation_mask(source_digests(train_set), np.zeros(13, dtype=np.int64), 0.2)
    seen = np.flatnonzero(has[part].any(axis=0)).tolist()
    for one in result.chosen["sweep"]:
        fits = [fitted(rows[~part], held[~part, :, c], one["penalty"]) for c in range(2)]
        scores = np.stack([fit.decision_function(rows[part].reshape(-1, rows.shape[2])) for fit in fits], axis=1)
        best = scores.reshape(part.sum(), 3, 2).max(axis=1)
        expected = np.mean([average_precision_score(has[part, c], best[:, c]) for c in seen])
        assert one["mAP"] == pytest.approx(expected, abs=1e-6)
    best_one = max(result.chosen["sweep"], key=lambda one: (one["mAP"], -one["loss"]))
    assert result.chosen["penalty"] == best_one["penalty"]
    fits = [fitted(rows, held[..., c], best_one["penalty"]) for c in range(2)]
    scores = np.stack([fit.decision_function(test_rows.reshape(-1, rows.shape[2])) for fit in fits], axis=1)
    expected = [average_precision_score(has[:6, c], scores.reshape(6, 2, 2).max(axis=1)[:, c]) for c in range(2)]
    assert list(result.trained.per_class.values()) == pytest.approx(expected, abs=1e-6)


def fitted(rows: Any, held: Any, penalty: float) -> LogisticRegression:
    """Return the binary classifier of rows [N, V, D] for classes [N, V] that scikit-learn fits."""
    return LogisticRegression(C=1 / (penalty * held.size), max_iter=5000, tol=1e-9).fit(
        rows.reshape(-1, rows.shape[-1]), held.reshape(-1)
    )


def test_several_labels_two_ranks_give_what_one_gives_and_a_resume_what_no_stop_gives(
    timed: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    one = train_classifier(task(*timed, tmp_path, "name=one"), kind="multilabel")
    stopped = train_classifier(task(*timed, tmp_path, "name=parts", "train.max_hours=1e-9"), kind="multilabel")
    assert isinstance(one, Evaluation) and isinstance(stopped, Stopped)
    resumed = train_classifier(task(*timed, tmp_path, "name=parts"), kind="multilabel", resume=True)
    assert isinstance(resumed, Evaluation) and resumed.trained == one.trained
    command = ["eval", "multilabel", "random", "--train", str(timed[0].root), "--test", str(timed[1].root)]
    launch_two(command, tmp_path)
    two = tmp_path / "runs/random/evals/two"
    assert read_one(two, "multilabel")["trained"] == one.to_json()["trained"]
    losses = [[line["loss"] for line in metrics(run)] for run in (one.folder, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_sets_are_refused_by_the_labels_that_they_have(
    timed: tuple[ShardSet, ShardSet], shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"timed: no video has a label, only further labels .*eval multilabel"):
        train_classifier(task(*timed, tmp_path), kind="finetune")
    for evaluate in (evaluate_neighbors, evaluate_retrieval):
        with pytest.raises(ConfigError, match=r"timed: no video has a label, only further labels"):
            evaluate(task(*timed, tmp_path))
    with pytest.raises(ConfigError, match=r"eval\.label_smoothing=0\.1: with several labels per video"):
        train_classifier(task(*timed, tmp_path, "eval.label_smoothing=0.1"), kind="multilabel")
    assert not (tmp_path / "runs").exists()
    single = train_classifier(task(shards, held_out, tmp_path, "train.steps=1"), kind="multilabel")
    assert isinstance(single, Evaluation)
    assert single.trained.chance["mAP"] == pytest.approx(1 / 3)  # one label is one of several


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("finetune", "train.accumulate=2", r"train\.accumulate=2: a classifier is trained with 1"),
        ("linear", "train.compile=true", r"train\.compile=true: a classifier is trained without torch\.compile"),
        ("finetune", "train.init_from=w.safetensors", r"train\.init_from=.*: a classifier begins with the weights"),
        ("multilabel", "train.knn_epochs=2", r"train\.knn_epochs=2: there is no kNN while a classifier is trained"),
        ("linear", "optim.layer_decay=0.75", r"optim\.layer_decay=0\.75: a linear probe trains the classifier alone"),
    ],
)
def test_what_a_classifier_cannot_follow_is_refused_before_anything_is_written(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, kind: Any, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_classifier(task(shards, held_out, tmp_path, setting), kind=kind)
    assert not (tmp_path / "runs").exists()


def test_a_config_takes_the_geometry_of_the_run_and_the_rest_of_its_file(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_PAGE)
    settings = [f"out={tmp_path}", f"data.train={shards.root}", "clips.rule=stride", "augment.mean=[0.4, 0.4, 0.4]"]
    train(load_config(path, settings))
    eval_config = tmp_path / "eval.toml"
    eval_config.write_text('name = "r"\n[optim]\nname = "sgd"\n[train]\nsteps = 1\n')
    opened = open_task(tmp_path / "tiny", held_out.root, config_file=eval_config)
    config = opened.config
    assert (config.clips.rule, config.clips.num_frames, config.augment.mean) == ("stride", 2, (0.4, 0.4, 0.4))
    assert (config.optim.name, config.train.steps, config.eval.views, config.backbone.options) == (
        "sgd", 1, 2, {"width": 4}
    )  # fmt: skip
    assert config.folder == tmp_path / "tiny" / "evals" / "r" and opened.model.step == 2
    with pytest.raises(ConfigError, match="13 of 13 test samples"):
        open_task(tmp_path / "tiny", shards.root, train=held_out.root)  # what the run was trained on
    assert len(open_task(tmp_path / "tiny", shards.root, train=held_out.root, allow_overlap=True).notes) == 1


CONFIGS = {path.stem: path for path in sorted((ROOT / "configs" / "eval").glob("*.toml"))}


@pytest.mark.parametrize(
    ("name", "rates", "settings"),
    [
        # learning rate at (epoch, ...), with the batch of the config; then weight decay, dropout, epochs, batch norm
        ("linear_k400", {0: 0.0, 8: 4.0 * 0.956773, 60: 0.0}, (0.0, 0.0, 60, "frozen")),
        ("ucf101_byol", {0: 0.01, 100: 0.005, 200: 0.0}, (0.0, 0.8, 200, "node")),
        ("ucf101_moco", {0: 0.005, 200: 0.0}, (1e-4, 0.5, 200, "local")),
        ("ucf101_paper", {0: 0.025, 60: 0.0025, 120: 0.00025, 180: 0.000025}, (0.0, 0.8, 200, "node")),
        ("hmdb51_paper", {59: 0.025, 60: 0.0025, 199: 0.000025}, (0.0, 0.8, 200, "node")),
        ("ssv2", {0: 1e-4, 1: 0.12, 14: 0.012, 18: 0.0012}, (1e-6, 0.5, 22, "node")),
        ("ava", {0: 5e-4, 5.3: 0.3, 16: 0.03, 24: 0.003, 28: 0.0003}, (1e-7, 0.5, 32, "node")),
        ("charades", {0: 1e-4, 5: 0.2, 39: 0.2, 40: 0.02, 50: 0.002}, (1e-4, 0.5, 60, "node")),
    ],
)
def test_a_config_has_its_published_numbers(
    name: str, rates: dict[float, float], settings: tuple[float, float, int, str]
) -> None:
    path = CONFIGS[name]
    config = load_config(path)
    optim, section = config.optim, config.eval
    for epoch, rate in rates.items():
        found = learning_rate(optim, config.train.batch_size, epoch, settings[2])
        assert found == pytest.approx(rate, rel=1e-4, abs=1e-12)
    assert (optim.weight_decay, section.dropout, config.train.epochs, section.batch_norm) == settings
    assert optim.name == "sgd" and optim.nesterov and optim.momentum == 0.9 and section.test_size == 256
    assert (section.test_views, section.test_crops) == ((1, 1) if name == "ssv2" else (10, 3))
    longest = 340 if name == "charades" else 320
    assert (config.augment.crop, config.augment.size, config.augment.short_side) == ("short_side", 224, (256, longest))
    head = path.read_text().partition("\nname =")[0]
    assert config.name == path.stem and f"--config configs/eval/{path.name}" in head
    assert [
        word for word in ("Source", "Command", "Hardware", "Expected", "Not yet run here") if word not in head
    ] == []


@needs_vectors
@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("linear_k400", "linear_k400_Slow_8x8_R50_syn8.yaml NUM_SHARDS=8"),
        ("ucf101_byol", "finetune_ucf_Slow_R50_syn8.yaml NUM_SHARDS=1"),
        ("ucf101_moco", "finetune_ucf_Slow_R50_syn0.yaml NUM_SHARDS=1"),
        ("ssv2", "finetune_SSv2_Slow_R50_syn8.yaml NUM_SHARDS=1"),
        ("ava", "finetune_ava_Slow_R50_syn8.yaml NUM_SHARDS=1"),
    ],
)
def test_a_config_has_the_rates_of_the_released_configuration(name: str, released: str) -> None:
    config, expected = load_config(CONFIGS[name]), numbers("schedules")[released]
    assert config.train.epochs == expected["max_epoch"]
    for epoch, rate in zip(expected["epochs"], expected["lr"], strict=True):
        found = learning_rate(config.optim, config.train.batch_size, epoch, expected["max_epoch"])
        assert found == pytest.approx(rate, rel=1e-9, abs=1e-12)


PROBES = ("attentive_k400", "attentive_ssv2")


@pytest.mark.parametrize("name", PROBES)
def test_a_config_of_attentive_probes_has_its_published_numbers(name: str) -> None:
    path = CONFIGS[name]
    config = load_config(path)
    optim, section = config.optim, config.eval
    assert section.probe_rates == (5e-3, 3e-3, 1e-3, 3e-4, 1e-4) and section.probe_decays == (0.01, 0.1, 0.4, 0.8)
    assert (section.probe_heads, section.test_views, section.test_crops) == (16, 8 if name.endswith("k400") else 2, 3)
    assert (optim.name, config.train.epochs, config.train.batch_size, config.train.precision) == (
        "adamw", 20, 4 * 64, "bf16",
    )  # fmt: skip
    peaks = [optim.model_copy(update={"base_lr": rate}) for rate in section.probe_rates]
    assert [learning_rate(peak, 256, 0, 20) for peak in peaks] == pytest.approx(section.probe_rates)
    assert learning_rate(peaks[0], 256, 20, 20) == pytest.approx(0, abs=1e-12)
    head = path.read_text().partition("\nname =")[0]
    assert config.name == path.stem and "rhofast eval attentive CHECKPOINT" in head and path.name in head
    assert [
        word for word in ("Source", "Hardware", "Expected", "Departs", "Not yet run here") if word not in head
    ] == []


def test_every_config_is_checked() -> None:
    ucf101 = {"ucf101_byol", "ucf101_moco", "ucf101_paper"}
    videomae = {"videomae_k400", "videomae_ssv2", "videomae_ucf101"}  # test_finetune_kit.py
    assert set(CONFIGS) - set(PROBES) - videomae == {"linear_k400", *ucf101, "hmdb51_paper", "ssv2", "ava", "charades"}

"""The loop of classifiers and detectors: what it reports while it runs, and that looking changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, DependencyError, NotFiniteError
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.multiview import score_videos
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.validation import validation_part
from rhofast.training import trackers
from rhofast.training.classify import Stopped, train_classifier
from rhofast.training.metrics import LINE_KINDS
from tests.helpers.saved import saved_bytes
from tests.helpers.shards import encode_mjpeg, frame_pixels, write_shards
from tests.training.test_finetune import launch_two, metrics, task

pytestmark = pytest.mark.usefixtures("one_thread")

WATCHED = ("eval.validation_epochs=0.34", "eval.validation_stride=2")  # every step of three per epoch


def weights(result: Any) -> dict[str, torch.Tensor]:
    assert isinstance(result, Evaluation)
    folder = latest_checkpoint(result.folder)
    assert folder is not None
    return load_checkpoint(folder).method


def test_trackers_get_the_numbers_of_a_finetuning_and_of_its_test(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    settings = ("train.trackers=['tensorboard']", "train.steps=3", *WATCHED)
    stopped = train_classifier(task(shards, held_out, tmp_path, *settings, "train.max_hours=1e-9"), kind="finetune")
    assert isinstance(stopped, Stopped)
    result = train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune", resume=True)
    assert isinstance(result, Evaluation)
    shown = EventAccumulator(str(result.folder / "tensorboard")).Reload()
    lines = metrics(result.folder)
    for name in ("loss", "top1", "lr", "clips_per_second", "epoch"):
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3]  # each once, although two processes have told it
        assert [value for _, value in found] == pytest.approx([line[name] for line in lines], rel=1e-6)
    [test] = shown.Scalars("test_score")
    assert (test.step, test.value) == (3, pytest.approx(result.trained.main[1]))
    assert [event.step for event in shown.Scalars("validation_score")] == [1, 2, 3]
    kinds = [line["kind"] for line in read_metrics(result.folder / "metrics.jsonl")]
    assert set(kinds) <= set(LINE_KINDS) and {"start", "stop", "checkpoint", "validation", "test"} <= set(kinds)


def test_a_tracker_is_told_of_a_failure_and_one_that_is_missing_ends_it_before_it_begins(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(trackers.RunTrackers, "finish", lambda self, state, **_: ended.append(state))
    with pytest.raises(NotFiniteError):
        train_classifier(task(shards, held_out, tmp_path, "optim.base_lr=1e9"), kind="finetune")
    assert ended == ["failed"]
    lines = read_metrics(tmp_path / "runs/random/evals/classifier/metrics.jsonl")
    assert [line["text"] for line in lines if line["kind"] == "error"]
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r'train\.trackers="tensorboard" needs a package'):
        train_classifier(task(shards, held_out, tmp_path, "name=b", "train.trackers=['tensorboard']"), kind="finetune")
    assert not (tmp_path / "runs/random/evals/b").exists()


def test_looking_at_the_held_out_set_changes_no_weight_and_is_told_with_the_best_epoch(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    plain = train_classifier(task(shards, held_out, tmp_path, "name=plain", "eval.batch_norm=local"), kind="finetune")
    opened = task(shards, held_out, tmp_path, "name=watched", "eval.batch_norm=local", *WATCHED)
    watched = train_classifier(opened, kind="finetune")
    assert isinstance(watched, Evaluation) and isinstance(plain, Evaluation)
    one, two = weights(plain), weights(watched)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert watched.trained == plain.trained and "validation" not in plain.chosen
    curve = [point["score"] for point in watched.chosen["validation"]]
    lines = [line for line in read_metrics(watched.folder / "metrics.jsonl") if line["kind"] == "validation"]
    assert [(line["step"], line["samples"], line["measure"]) for line in lines] == [
        (step, 3, "top-1") for step in range(1, 7)
    ]
    assert [line["score"] for line in lines] == curve and watched.chosen["best_validation"] == max(curve)
    best = [point["epoch"] for point in watched.chosen["validation"] if point["score"] == max(curve)]
    assert watched.chosen["best_epoch"] == best[0]
    json.dumps(watched.to_json())


def test_the_last_look_is_that_of_the_trained_weights_on_a_part_of_the_held_out_set(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    opened = task(shards, held_out, tmp_path, "eval.validation_epochs=1", "eval.validation_stride=2")
    result = train_classifier(opened, kind="finetune")
    assert isinstance(result, Evaluation)
    part = validation_part(held_out, 2)
    assert [part.row(number).key for number in range(len(part))] == ["v0", "v2", "v4"]
    again = task(shards, held_out, tmp_path, "eval.test_views=1", "eval.test_crops=1")
    classifier = Classifier(again.model.backbone, 3, trained=True, batch_stats=False, size=16)
    classifier.load_state_dict(weights(result))
    scores = score_videos(classifier, shards, part, again.config)
    assert result.chosen["validation"][-1]["score"] == scores.main[1]


def test_a_resumed_training_has_the_whole_curve(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    whole = train_classifier(task(shards, held_out, tmp_path, "name=whole", *WATCHED), kind="finetune")
    parts = ("name=parts", *WATCHED)
    for _ in range(2):
        opened = task(shards, held_out, tmp_path, *parts, "train.max_hours=1e-9")
        stopped = train_classifier(opened, kind="finetune", resume=True)
        assert isinstance(stopped, Stopped)
    resumed = train_classifier(task(shards, held_out, tmp_path, *parts), kind="finetune", resume=True)
    assert isinstance(whole, Evaluation) and isinstance(resumed, Evaluation)
    assert resumed.chosen == whole.chosen and len(whole.chosen["validation"]) == 6


def test_a_part_without_labels_is_refused_before_anything_is_written(shards: ShardSet, tmp_path: Path) -> None:
    videos = [encode_mjpeg([frame_pixels(video, 23 - frame) for frame in range(20)]) for video in range(4)]
    test = write_shards(tmp_path / "odd", videos, labels=[None, 1, None, 2])
    with pytest.raises(ConfigError, match=r"eval\.validation_stride=2: .*odd: no video has a label"):
        train_classifier(task(shards, test, tmp_path, *WATCHED), kind="finetune")
    assert not (tmp_path / "runs").exists()


def test_videos_without_a_label_count_for_nothing_on_any_number_of_processes(
    held_out: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    """The loss is the mean over the labeled clips of the global batch, of which ranks have different numbers."""
    labels = [None if video in (0, 1, 5, 6, 8) else video % 3 for video in range(13)]
    some = write_shards(tmp_path / "some", members, labels=labels)
    one = train_classifier(task(some, held_out, tmp_path, "name=one"), kind="finetune")
    assert isinstance(one, Evaluation)
    launch_two(["eval", "finetune", "random", "--train", str(some.root), "--test", str(held_out.root)], tmp_path)
    lines = [metrics(run) for run in (one.folder, tmp_path / "runs/random/evals/two")]
    for key in ("loss", "top1"):
        assert [line[key] for line in lines[0]] == pytest.approx([line[key] for line in lines[1]], rel=1e-4)


@pytest.mark.parametrize("kind", ["finetune", "multilabel"])
def test_activations_that_are_computed_again_take_less_memory_for_the_same_weights(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kept = [], []
    for again in ("false", "true"):
        settings = (f"name={again}", "backbone.name=slow_r50", "train.steps=2", "eval.batch_norm=local")
        opened = task(shards, held_out, tmp_path, *settings, f"train.checkpoint_activations={again}")
        with saved_bytes() as count:
            found.append(train_classifier(opened, kind=kind))
        kept.append(count["bytes"])
    one, two = map(weights, found)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert kept[1] < 0.5 * kept[0]
    monkeypatch.setattr("rhofast.training.setup.checkpoint_blocks", lambda backbone: 0)
    opened = task(shards, held_out, tmp_path, "name=none", "train.checkpoint_activations=true")
    with pytest.raises(ConfigError, match=r"train\.checkpoint_activations=true: .*slow_r18 has no blocks"):
        train_classifier(opened, kind=kind)

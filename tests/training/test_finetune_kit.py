"""Fine-tuning with all of the kit: it resumes to the same bits, agrees over ranks, and refuses what has no meaning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask, open_task
from rhofast.training import setup
from rhofast.training.classify import Stopped, train_classifier
from rhofast.training.optim import learning_rate
from rhofast.training.targets import soft_cross_entropy
from tests.helpers.results import read_one
from tests.helpers.shards import ROOT, TINY_PAGE, write_shards
from tests.training.test_finetune import EVAL_CONFIG, launch_two, metrics

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = ("backbone.name=vit", "backbone.width=24", "backbone.depth=3", "backbone.heads=2", "backbone.patch=8")
AUGMENTED = (
    *("augment.rand_ops=2", "augment.erase=0.5", "augment.mixup=0.8", "augment.cutmix=1.0"),
    *("clips.max_span=0.0", "eval.repeats=2", "eval.label_smoothing=0.1"),
)
OPTIMIZED = ("optim.name=adamw", "optim.base_lr=1e-3", "optim.weight_decay=0.05", "optim.layer_decay=0.75")
KIT = (*VIT, *AUGMENTED, *OPTIMIZED)


def task(shards: ShardSet, test: ShardSet, tmp_path: Path, *settings: str) -> EvalTask:
    path = tmp_path / "eval.toml"
    path.write_text(EVAL_CONFIG)
    return open_task("random", test.root, train=shards.root, config_file=path, overrides=[*settings])


def test_a_resumed_training_ends_with_the_same_weights(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    kit = (*KIT, "backbone.drop_path=0.2")
    whole = train_classifier(task(shards, held_out, tmp_path, *kit, "name=whole"), kind="finetune")
    stop = ("name=parts", "train.max_hours=1e-9")
    stopped = train_classifier(task(shards, held_out, tmp_path, *kit, *stop), kind="finetune")
    assert isinstance(stopped, Stopped) and stopped.step == 1  # of three in an epoch
    resumed = train_classifier(task(shards, held_out, tmp_path, *kit, "name=parts"), kind="finetune", resume=True)
    assert isinstance(whole, Evaluation) and isinstance(resumed, Evaluation)
    one, two = (load_checkpoint(latest_checkpoint(at.folder)).method for at in (whole, resumed))  # type: ignore[arg-type]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert whole.trained == resumed.trained


def test_two_ranks_give_what_one_gives(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    one = train_classifier(task(shards, held_out, tmp_path, *KIT, "name=one"), kind="finetune")
    assert isinstance(one, Evaluation)
    command = ["eval", "finetune", "random", "--train", str(shards.root), "--test", str(held_out.root)]
    launch_two(command, tmp_path, KIT)
    two = tmp_path / "runs/random/evals/two"
    losses = [[line["loss"] for line in metrics(run)] for run in (one.folder, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert read_one(two, "finetune")["trained"]["samples"] == 6


def test_targets_are_the_shares_of_the_two_videos_that_a_clip_shows(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "rhofast.training.finetune.soft_cross_entropy",
        lambda logits, target: seen.append(target) or soft_cross_entropy(logits, target),
    )
    views: list[Any] = []
    loss_of = setup.TrainLoader.__next__
    monkeypatch.setattr(setup.TrainLoader, "__next__", lambda self: views.append(loss_of(self)) or views[-1])
    settings = (*KIT, "eval.label_smoothing=0.0", "train.steps=2")
    train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune")
    for batch, target in zip(views, seen, strict=True):
        assert batch.pixels.shape[:2] == (4, 2) and target.shape == (8, 3)
        for b in range(4):
            for p in range(2):
                own, other, share = int(batch.label[b]), int(batch.label[b ^ 1]), float(batch.share[b, p])
                expected = torch.zeros(3)
                expected[own] += share
                expected[other] += 1 - share
                assert torch.allclose(target[2 * b + p], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "finetune"])
def test_a_network_without_vit_layers_takes_the_augmentation_too(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, kind: Any
) -> None:
    slow = ("backbone.name=slow_r18", "backbone.width=4", *AUGMENTED)
    decay = ("optim.layer_decay=0.75",) if kind == "finetune" else ()
    result = train_classifier(task(shards, held_out, tmp_path, *slow, *decay), kind=kind)
    assert isinstance(result, Evaluation) and result.trained.samples == 6


@pytest.mark.parametrize(
    ("labels", "further", "message"),
    [
        ([0, 1, None, 2], None, r"sample 'v2' of .* has no label, and only videos with one label each can be mixed"),
        ([0, 1, 2, 0], [(), (TimedLabel(2, 0.5, 1.0),), (), ()], r"sample 'v1' of .* has several labels"),
    ],
)
def test_videos_without_exactly_one_label_are_not_mixed(
    held_out: ShardSet, members: list[bytes], tmp_path: Path, labels: Any, further: Any, message: str
) -> None:
    shards = write_shards(tmp_path / "odd", members[:4], labels=labels, further=further)
    with pytest.raises(ConfigError, match=message):
        train_classifier(task(shards, held_out, tmp_path, *KIT), kind="finetune")
    unmixed = task(shards, held_out, tmp_path, *KIT, "augment.mix=0.0", "train.steps=1")
    assert isinstance(train_classifier(unmixed, kind="finetune"), Evaluation)


def test_a_network_that_names_no_layers_has_no_decay(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    settings = ("backbone.name=r3d_18", "optim.layer_decay=0.75")
    with pytest.raises(ConfigError, match=r"optim\.layer_decay=0\.75: backbone\.name=r3d_18 does not say"):
        train_classifier(task(shards, held_out, tmp_path, *settings), kind="finetune")


def test_pretraining_mixes_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    config = load_config(tmp_path / "tiny.toml", [f"out={tmp_path}", "augment.cutmix=1.0"])
    with pytest.raises(ConfigError, match=r"augment\.cutmix=1: pretraining has no labels to mix"):
        setup.build_model(config, Accelerator(cpu=True))


VIDEOMAE = {
    # peak and last rate with the batch of the config, decay by layer, drop path, dropout, epochs, test views, top-1
    "videomae_k400": (1.4e-3, 2e-6, 0.75, 0.1, 0.0, 90, 5, 0.815),
    "videomae_ssv2": (2e-3, 1e-6, 0.65, 0.1, 0.0, 25, 2, 0.712),
    "videomae_ucf101": (2.5e-4, 5e-6, 0.7, 0.2, 0.5, 100, 5, 0.913),
}


@pytest.mark.parametrize("name", VIDEOMAE)
def test_a_config_of_a_vit_has_its_published_numbers(name: str) -> None:
    path = ROOT / "configs" / "eval" / f"{name}.toml"
    config, (peak, last, decay, drop_path, dropout, epochs, views, top1) = load_config(path), VIDEOMAE[name]
    optim, section, augment = config.optim, config.eval, config.augment
    batch = config.train.batch_size
    assert learning_rate(optim, batch, epochs, epochs) == pytest.approx(last)
    assert optim.base_lr * batch / optim.base_batch == pytest.approx(peak)
    assert learning_rate(optim, batch, 5, epochs) == pytest.approx(peak, rel=0.1)
    assert (optim.name, optim.betas, optim.weight_decay, optim.layer_decay) == ("adamw", (0.9, 0.999), 0.05, decay)
    assert (config.backbone.name, config.backbone.options) == ("vit", {"drop_path": drop_path})
    assert (section.dropout, config.train.epochs, section.label_smoothing, section.repeats) == (dropout, epochs, 0.1, 2)
    assert (section.test_views, section.test_crops, section.test_size) == (views, 3, None)
    assert (augment.rand_ops, augment.rand_magnitude, augment.rand_spread, augment.rand_probability) == (4, 7, 0.5, 0.5)
    assert (augment.erase, augment.mixup, augment.cutmix, augment.mix, augment.cutmix_share) == (0.25, 0.8, 1, 1, 0.5)
    assert (augment.crop, augment.area, augment.color) == ("area", (0.08, 1.0), 0.0)
    assert augment.flip == (0.0 if name == "videomae_ssv2" else 0.5) and section.published[0].value == top1
    head = path.read_text().partition("\nname =")[0]
    assert config.name == path.stem and f"--config configs/eval/{path.name}" in head
    assert [
        word for word in ("Source", "Hardware", "Expected", "Departs", "Not yet run here") if word not in head
    ] == []

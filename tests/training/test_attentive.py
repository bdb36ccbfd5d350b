"""Attentive probes through the loader: chosen without the test videos, resumed to the same bits, alike on two ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score

from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.cli.app import app
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.subset import VISIT, Subset
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError, ResumeError
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.choice import Tried, best_of
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask, open_task
from rhofast.evaluation.validation import split_off
from rhofast.training.classify import Stopped, train_classifier
from tests.helpers.program import run_ranks
from tests.helpers.results import read_one
from tests.helpers.shards import encode_mjpeg, frame_pixels, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")

EVAL_CONFIG = """
name = "probes"
[augment]
crop = "short_side"
size = 32
short_side = [32, 36]
color = 0.0
gray = 0.0
blur = 0.0
[optim]
name = "adamw"
base_batch = 4
warmup_epochs = 0
[train]
batch_size = 4
steps = 6
log_steps = 1
checkpoint_steps = 3
[eval]
views = 2
test_views = 2
test_crops = 1
batch_size = 12
dropout = 0.2
probe_rates = [3e-3, 1e-4]
probe_decays = [0.01, 0.8]
probe_heads = 4
probe_validation = 0.3
[data]
threads = 2
decode_threads = 1
[clips]
num_frames = 2
frame_stride = 2
fps = 12
"""
TINY = ("backbone.name=slow_r18", "backbone.width=2")


def task(shards: ShardSet, test: ShardSet, tmp_path: Path, *settings: str) -> EvalTask:
    path = tmp_path / "eval.toml"
    path.write_text(EVAL_CONFIG)
    return open_task("random", test.root, train=shards.root, config_file=path, overrides=[*TINY, *settings])


def trained(shards: ShardSet, test: ShardSet, tmp_path: Path, *settings: str, resume: bool = False) -> Evaluation:
    result = train_classifier(task(shards, test, tmp_path, *settings), kind="attentive", resume=resume)
    assert isinstance(result, Evaluation)
    return result


def weights(result: Evaluation) -> dict[str, torch.Tensor]:
    folder = latest_checkpoint(result.folder)
    assert folder is not None
    return dict(load_checkpoint(folder).method)


def test_the_split_keeps_classes_sources_and_rates(shards: ShardSet) -> None:
    split = split_off(shards, 0.3)
    fitting = split.fitting.part.samples  # type: ignore[union-attr]
    assert sorted([*fitting.tolist(), *split.validation.tolist()]) == list(range(13))
    assert [len(split.validation[split.validation % 3 == c]) for c in range(3)] == [2, 1, 1]
    assert not set(source_digests(shards)[split.validation]) & set(source_digests(split.fitting))
    assert split.fitting.digest not in (shards.digest, split_off(shards, 0.2).fitting.digest)
    rates = np.array([4, 2, 2, 2, 2, 1, 1]) * (VISIT // 2)
    part = Subset(samples=np.array([0, 1, 3, 4, 6, 7, 9]), rates=rates, digest="0" * 64)
    inner = split_off(shards.subset(part), 0.3)
    assert set(inner.fitting.part.samples.tolist()) < set(part.samples.tolist())  # type: ignore[union-attr]
    assert inner.fitting.part.rates.sum() == len(inner.fitting) * VISIT  # type: ignore[union-attr]
    assert len(inner.fitting) + len(inner.validation) == 7 and inner.validation.max() < 7
    rows = [inner.fitting.row(sample).key for sample in range(len(inner.fitting))]
    assert not {f"v{part.samples[number]}" for number in inner.validation} & set(rows)
    with pytest.raises(ConfigError, match="1 labeled samples cannot be split"):
        split_off(shards.subset(Subset(samples=np.array([2]), rates=None, digest="1" * 64)), 0.3)


def test_the_best_accuracy_is_chosen_then_the_lowest_loss() -> None:
    tried = [(0.5, 0.1), (0.75, 0.9), (0.75, 0.8), (0.2, 0.0)]
    assert best_of([Tried(setting={}, measure="top1", score=score, loss=loss) for score, loss in tried]) == 2


def test_the_test_videos_choose_nothing_and_the_backbone_stays(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    opened = task(shards, held_out, tmp_path, "name=one")
    before = {key: value.clone() for key, value in opened.model.backbone.state_dict().items()}
    one = train_classifier(opened, kind="attentive")
    assert isinstance(one, Evaluation) and one.kind == "attentive" and one.folder == Path("runs/random/evals/one")
    chosen, sweep = one.chosen, one.chosen["sweep"]
    assert [(each["rate"], each["decay"]) for each in sweep] == [(3e-3, 0.01), (3e-3, 0.8), (1e-4, 0.01), (1e-4, 0.8)]
    best = max(sweep, key=lambda each: (each["top1"], -each["loss"]))
    assert (chosen["rate"], chosen["decay"], chosen["validation_top1"]) == (
        best["rate"], best["decay"], best["top1"],
    )  # fmt: skip
    assert chosen["validation_videos"] == 4 and all(each["loss"] > 0 for each in sweep)
    after = weights(one)
    assert all(torch.equal(after[f"backbone.{key}"], value) for key, value in before.items())
    moved = [
        name
        for name in after
        if name.startswith("probes.0.") and not torch.equal(after[name], after[f"probes.2{name[8:]}"])
    ]
    assert len(moved) > 20  # rates differ, and with them all weights

    other = write_shards(tmp_path / "other", [encode_mjpeg([frame_pixels(30, 3)] * 9)] * 2, labels=[2, 0])
    two = trained(shards, other, tmp_path, "name=two")
    assert two.chosen["sweep"] == sweep and two.trained.samples == 2
    assert all(torch.equal(after[name], value) for name, value in weights(two).items())


def test_each_of_many_probes_is_what_it_is_alone(shards: ShardSet, held_out: ShardSet, tmp_path: Path) -> None:
    many = weights(trained(shards, held_out, tmp_path, "name=many", "optim.warmup_epochs=1"))
    only = ("eval.probe_rates=[1e-4]", "eval.probe_decays=[0.8]", "optim.warmup_epochs=1")
    alone = weights(trained(shards, held_out, tmp_path, "name=alone", *only))
    for name, value in alone.items():
        if name.startswith("probes.0."):
            assert torch.allclose(many[f"probes.3{name[8:]}"], value, atol=1e-6), name


def test_joined_clips_are_trained_and_tested_as_one_example(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    """What is measured is what the trained probe says of the tokens of all clips of a video, one after another."""
    joined = ("eval.probe_clips=2", "eval.views=2", "eval.test_views=4", "train.checkpoint_activations=true")
    opened = task(shards, held_out, tmp_path, "name=joined", *joined)
    result = train_classifier(opened, kind="attentive")
    assert isinstance(result, Evaluation)
    assert result.settings["clips_together"] == 2
    begun = load_checkpoint(latest_checkpoint(result.folder)).config.clips  # type: ignore[arg-type]
    assert (begun.num_clips, begun.parts) == (2, 2)  # spread over the video, as those of the test are
    section, backbone = opened.config.eval, opened.model.backbone.eval()
    probes = AttentiveProbes(backbone, "slow_r18", 3, count=4, heads=section.probe_heads, dropout=0.2)
    probes.load_state_dict(weights(result))
    chosen = probes.eval().probes[result.chosen["sweep"].index(best_sweep(result))]
    hits = []
    config = opened.config
    with (
        EvalLoader(
            held_out, clips=config.clips, augment=config.augment, data=config.data, batch_size=6, views=4, crops=1
        ) as loader,
        torch.no_grad(),
    ):
        for batch in loader:
            for clips, label in zip(batch.pixels, batch.label.tolist(), strict=True):
                tokens = backbone.tokens(clips)
                scores = [chosen(torch.cat([tokens[first], tokens[first + 2]])[None]).softmax(1) for first in (0, 1)]
                hits.append(int((scores[0] + scores[1]).argmax()) == label)
    assert len(hits) == 6 and result.trained.measures["top-1"] == pytest.approx(sum(hits) / 6)


def test_several_labels_are_chosen_by_map_and_scored_as_scikit_learn_does(tmp_path: Path) -> None:
    """Joined clips have the classes of any of them in training, and of the test views the maximum counts.

    Two processes give what one gives.
    """
    halves = [TimedLabel(0, None, 1.0), TimedLabel(1, 1.0, None)]
    sets = []
    for name, count, frames in (("timed", 13, 24), ("timed_test", 6, 20)):
        videos = [encode_mjpeg([frame_pixels(video, frame) for frame in range(frames)]) for video in range(count)]
        further = [[] if video == 4 else halves[: video % 2 + 1] for video in range(count)]
        sets.append(write_shards(tmp_path / name, videos, further=further))
    settings = ("eval.probe_clips=2", "eval.views=4", "eval.test_views=4")
    opened = task(*sets, tmp_path, *settings)
    result = train_classifier(opened, kind="attentive")
    assert isinstance(result, Evaluation) and list(result.trained.measures) == ["mAP"]
    sweep = result.chosen["sweep"]
    best = max(sweep, key=lambda each: (each["mAP"], -each["loss"]))
    assert result.chosen["validation_mAP"] == best["mAP"] and result.chosen["rate"] == best["rate"]
    section, backbone = opened.config.eval, opened.model.backbone.eval()
    probes = AttentiveProbes(backbone, "slow_r18", 2, count=4, heads=section.probe_heads, dropout=0.2)
    probes.load_state_dict(weights(result))
    has = np.array([[video != 4, video != 4 and video % 2 == 1] for video in range(13)])
    validation = split_off(sets[0], 0.3, several=True).validation
    assert len(validation) == 4
    for number, one in enumerate(sweep):
        scores = by_hand(probes.eval().probes[number], backbone, sets[0], opened.config, validation)
        assert one["mAP"] == pytest.approx(average_precision_score(has[validation], scores), abs=1e-6)
    chosen = probes.probes[sweep.index(best)]
    scores = by_hand(chosen, backbone, sets[1], opened.config, np.arange(6))
    assert result.trained.measures["mAP"] == pytest.approx(average_precision_score(has[:6], scores), abs=1e-6)
    given = [text for setting in (*TINY, *settings, "name=two") for text in ("--set", setting)]
    command = ["eval", "attentive", "random", "--train", sets[0].root, "--test", sets[1].root, *given]
    run_ranks("-m", "rhofast", *command, "--config", tmp_path / "eval.toml", cwd=tmp_path)
    two = read_one(Path("runs/random/evals/two"), "attentive")
    assert two["trained"]["measures"]["mAP"] == pytest.approx(result.trained.measures["mAP"], abs=1e-6)
    for mine, theirs in zip(sweep, two["chosen"]["sweep"], strict=True):
        assert theirs == {**mine, "loss": pytest.approx(mine["loss"], rel=1e-3)}


def by_hand(
    probe: torch.nn.Module, backbone: Any, shards: ShardSet, config: Config, samples: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Sigmoids of both pairs of four clips, first with third and second with fourth, and their maximum."""
    found = []
    loader = EvalLoader(
        shards, clips=config.clips, augment=config.augment, data=config.data, batch_size=6, views=4, samples=samples
    )
    with loader, torch.no_grad():
        for clips in (each for batch in loader for each in batch.pixels):
            tokens = backbone.tokens(clips)
            pairs = [probe(torch.cat([tokens[first], tokens[first + 2]])[None]).sigmoid() for first in (0, 1)]
            found.append(torch.maximum(*pairs)[0].numpy())
    return np.stack(found)


def best_sweep(result: Evaluation) -> dict[str, float]:
    best: dict[str, float] = max(result.chosen["sweep"], key=lambda each: (each["top1"], -each["loss"]))
    return best


def test_a_resumed_training_ends_with_the_same_weights_and_choice(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path
) -> None:
    whole = trained(shards, held_out, tmp_path, "name=whole")
    stopped = train_classifier(task(shards, held_out, tmp_path, "name=parts", "train.max_hours=1e-9"), kind="attentive")
    assert isinstance(stopped, Stopped) and stopped.step == 1
    for setting, message in (
        ("eval.probe_decays=[0.1, 0.8]", r"decays was \[0.01, 0.8\], is \[0.1, 0.8\]"),
        ("eval.probe_validation=0.2", "validation was 0.3"),
    ):
        with pytest.raises(ResumeError, match=message):
            trained(shards, held_out, tmp_path, "name=parts", setting, resume=True)
    resumed = trained(shards, held_out, tmp_path, "name=parts", resume=True)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert resumed.trained == whole.trained and resumed.chosen == whole.chosen


def test_two_ranks_give_what_one_gives_and_all_prints_every_setting(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task(shards, held_out, tmp_path)  # writes the config
    command = ["eval", "attentive", "random", "--train", str(shards.root), "--test", str(held_out.root), "--all"]
    given = [text for setting in TINY for text in ("--set", setting)]
    whole = [*command, "--config", str(tmp_path / "eval.toml"), *given]
    app([*whole, "--set", "name=one"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "all probes, on validation videos" in printed and "0.003" in printed and "Wrote" in printed
    run_ranks("-m", "rhofast", *whole, "--set", "name=two", cwd=tmp_path)
    one, two = (read_one(Path("runs/random/evals") / name, "attentive") for name in ("one", "two"))
    assert one["trained"] == two["trained"]
    for mine, theirs in zip(one["chosen"].pop("sweep"), two["chosen"].pop("sweep"), strict=True):
        assert theirs == {**mine, "loss": pytest.approx(mine["loss"], rel=1e-3)}
    assert (one["settings"], one["chosen"]) == (two["settings"], two["chosen"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("eval.probe_heads=5",), r"eval\.probe_heads=5 does not divide the 16 numbers of a token"),
        (("optim.clip=1.0",), r"optim\.clip=1: it would scale all probes by the gradients of all"),
        (("train.precision=fp16",), r"train\.precision=fp16: its loss scale would follow"),
        (("eval.probe_clips=4", "eval.views=4"), r"eval\.test_views=2: eval\.probe_clips=4 clips are read together"),
        (("eval.probe_clips=2", "augment.mixup=0.8"), r"augment\.mix=1: clips are mixed one by one"),
    ],
)
def test_what_probes_cannot_follow_is_refused_before_anything_is_written(
    shards: ShardSet, held_out: ShardSet, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_classifier(task(shards, held_out, tmp_path, *settings), kind="attentive")
    assert not (tmp_path / "runs").exists()

"""Replayed clips equal those of training, and pictures of clips show them with their plans."""

import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from rhofast.analysis.plan_text import describe_color
from rhofast.analysis.rendering import DrawnClip, DrawnVideo, animation, contact_sheet, write_pictures
from rhofast.analysis.replay import Gallery, augmented_clips, displayable, is_run, replay_batch
from rhofast.checkpoint.checkpoint import Checkpoint, save_checkpoint
from rhofast.cli.app import main
from rhofast.config.load import dump_config, load_config
from rhofast.config.schema import AugmentConfig, ClipConfig, Config, DataConfig
from rhofast.config.section import parse_section
from rhofast.data.format.dataset import ShardSet, choose_samples
from rhofast.data.format.selection import find_samples
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.color import color_matrix
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Views
from rhofast.errors import ConfigError, ResumeError, ShardMissingError
from rhofast.training.trainer import train
from tests.helpers.shards import TINY_PAGE, damage_unit, write_shards

CLIPS = ClipConfig(num_frames=3, frame_stride=2, fps=12)
AUGMENT = AugmentConfig(size=16)
BATCH, STEPS = 4, 5  # of 13 samples: three batches an epoch, so that the edge is crossed

Frames = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config(shards: ShardSet, tmp_path: Path) -> Config:
    config_file = tmp_path / "tiny.toml"
    config_file.write_text(TINY_PAGE)
    values = {"out": tmp_path / "runs", "data.train": shards.root, "train.steps": STEPS, "data.max_bad": 1.0}
    return load_config(config_file, [f"{key}={value}" for key, value in values.items()])


def frames_of(shown: Gallery) -> Frames:
    """Return the drawn frames, u8[B, P, T, H, W, 3]."""
    return np.stack([[clip.frames for clip in video.clips] for video in shown.videos])


def open_loader(shards: ShardSet | Mixture, config: Config, **more: Any) -> TrainLoader:
    return TrainLoader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=BATCH,
        seed=config.seed,
        **more,
    )


def write_run(config: Config, *lines: dict[str, Any]) -> Path:
    """Write a run folder without checkpoints."""
    config.folder.mkdir(parents=True)
    (config.folder / "config.json").write_text(json.dumps(dump_config(config)))
    (config.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return config.folder


def start(shards: ShardSet, step: int, world_size: int) -> dict[str, Any]:
    return {"kind": "start", "step": step, "world_size": world_size, "digest": shards.info.digest}


def step_line(step: int) -> dict[str, Any]:
    return {"kind": "step", "step": step}


def test_a_replay_of_a_step_equals_what_training_consumed_in_it(
    shards: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in range(24):
        damage_unit(shards, 7, unit)
    consumed: list[Views] = []
    give = TrainLoader.__next__

    def record(loader: TrainLoader) -> Views:
        consumed.append(give(loader))
        return consumed[-1]

    monkeypatch.setattr(TrainLoader, "__next__", record)
    train(config)
    assert len(consumed) == STEPS
    notes = []
    for step, views in enumerate(consumed, start=1):
        shown = replay_batch(config.folder, step=step)
        assert np.array_equal(frames_of(shown), displayable(views.pixels, config.augment))
        assert list(shown.samples) == views.sample.tolist()
        assert shown.heading == (
            f"tiny, step {step}, rank 0 of 1",
            f"seed 0, epoch {(step - 1) // 3}, position {(step - 1) % 3 * BATCH}",
        )
        notes += shown.notes
        for sample, video in zip(shown.samples, shown.videos, strict=True):
            assert video.title[:2] == (f"v{sample}", f"class {sample % 3}")
            assert (video.note is not None) == any(note.startswith(f"sample {sample} ") for note in shown.notes)
    assert notes and all("in place of sample 7: frame" in note and "'v7'" in note for note in notes)


def test_each_rank_of_a_resumed_run_gets_its_own_batch(shards: ShardSet, config: Config) -> None:
    run = write_run(
        config, start(shards, 0, 1), step_line(3), start(shards, 2, 2), step_line(STEPS), start(shards, STEPS, 4)
    )
    for unit in range(24):
        damage_unit(shards, 7, unit)
    for world_size, steps in ((1, range(1, 3)), (2, range(3, STEPS + 1))):  # step 3 was done twice
        for rank in range(world_size):
            with open_loader(shards, config, rank=rank, world_size=world_size) as loader:
                batches = [next(loader) for _ in range(STEPS)]
            for step in steps:
                shown = replay_batch(run, step=step, rank=rank)
                assert shown.heading[0].endswith(f"rank {rank} of {world_size}")
                assert np.array_equal(frames_of(shown), displayable(batches[step - 1].pixels, config.augment))


def test_samples_of_a_mixture_have_the_names_of_their_set(
    shards: ShardSet, config: Config, members: list[bytes], tmp_path: Path
) -> None:
    other = write_shards(tmp_path / "other", members[:6])  # without labels
    sources = [{"shards": str(one.root), "weight": weight} for one, weight in ((shards, 1.0), (other, 2.0))]
    both = config.model_copy(update={"data": parse_section(DataConfig, {"train": sources}, where="test")})
    mixture = Mixture([shards, other], [1.0, 2.0])
    run = write_run(both, {**start(shards, 0, 1), "digest": mixture.digest}, step_line(STEPS))
    with open_loader(mixture, both) as loader:
        batches = [next(loader) for _ in range(STEPS)]
    for step, views in enumerate(batches, start=1):
        shown = replay_batch(run, step=step)
        assert np.array_equal(frames_of(shown), displayable(views.pixels, config.augment))
        for sample, video in zip(shown.samples, shown.videos, strict=True):
            first, local = (13, sample - 13) if sample >= 13 else (0, sample)
            assert video.title[:-1] == ((f"v{local}",) if first else (f"v{local}", f"class {local % 3}"))


def test_only_steps_that_the_run_did_have_a_batch_unless_the_ranks_are_given(shards: ShardSet, config: Config) -> None:
    run = write_run(config, start(shards, 0, 1), step_line(2))
    with pytest.raises(ConfigError, match=r"--step 3: the run has done steps 1 to 2"):
        replay_batch(run, step=3)
    assert "epoch 1, position 0" in replay_batch(run, step=4, world_size=2).heading[1]
    for step, more in ((0, {}), (0, {"world_size": 1})):
        with pytest.raises(ConfigError, match="--step 0"):
            replay_batch(run, step=step, **more)
    with pytest.raises(ConfigError, match=r"--rank 1: must be in \[0, 0\]"):
        replay_batch(run, step=2, rank=1)
    with pytest.raises(ConfigError, match=r"--world-size 3: must divide train\.batch_size=4"):
        replay_batch(run, step=2, world_size=3)


def test_a_step_that_only_a_checkpoint_records_was_done(shards: ShardSet, config: Config) -> None:
    run = write_run(config, start(shards, 0, 1))
    with pytest.raises(ConfigError, match="not known to have done any step"):
        replay_batch(run, step=1)
    empty = {"state": {}, "param_groups": []}
    save_checkpoint(run, Checkpoint(step=2, config=config, loader={}, method={}, optimizer=empty), keep=1)
    assert replay_batch(run, step=2).samples


def test_a_run_is_shown_on_its_own_data_alone(
    shards: ShardSet, config: Config, members: list[bytes], tmp_path: Path
) -> None:
    run = write_run(config, start(shards, 0, 1), step_line(2))
    other = write_shards(tmp_path / "other", members[:8])
    with pytest.raises(ResumeError, match="not that of the run: its digest was"):
        replay_batch(run, step=1, overrides=[f"data.train={other.root}"])
    before = frames_of(replay_batch(run, step=1))
    moved = shards.root.rename(tmp_path / "moved")
    with pytest.raises(ShardMissingError, match="no such folder") as caught:
        replay_batch(run, step=1)
    assert caught.value.hint is not None and "--set data.train" in caught.value.hint
    assert np.array_equal(frames_of(replay_batch(run, step=1, overrides=[f"data.train={moved}"])), before)
    with pytest.raises(ConfigError, match="a run is replayed as it was"):
        replay_batch(run, step=1, overrides=["augment.blur=0"])


def test_samples_that_were_bad_then_or_are_bad_only_now_are_reported(shards: ShardSet, config: Config) -> None:
    run = write_run(config, start(shards, 0, 1), step_line(2))
    first, second, *_ = replay_batch(run, step=2).samples
    line = {"rank": 0, "epoch": 0, "position": BATCH, "sample": first, "reason": "checksum mismatch"}
    (run / "bad_samples.jsonl").write_text(json.dumps(line) + "\n")
    for unit in range(24):
        damage_unit(shards, second, unit)
    notes = replay_batch(run, step=2, count=1).notes
    assert len(notes) == 3 and f"in place of sample {second}" in notes[0]
    assert notes[1:] == (
        f"sample {first} was bad during the run and is readable now: the run used another one",
        f"sample {second} is bad now and was readable during the run: the run used it",
    )
    assert replay_batch(run, step=1).notes == ()


def test_a_batch_beyond_all_memory_is_refused_before_it_is_read(shards: ShardSet, config: Config) -> None:
    huge = config.model_copy(update={"augment": config.augment.model_copy(update={"size": 4096})})
    huge = huge.model_copy(update={"train": huge.train.model_copy(update={"batch_size": 1 << 20})})
    run = write_run(huge, start(shards, 0, 1), step_line(4))
    with pytest.raises(ConfigError, match=r"4096 x 4096 pixels has [0-9,]+ values; the limit is 4,294,967,296"):
        replay_batch(run, step=1)


def test_a_folder_that_is_no_run_is_refused(shards: ShardSet, config: Config, tmp_path: Path) -> None:
    assert not is_run(shards.root) and not is_run(tmp_path / "nowhere")
    run = write_run(config)
    assert is_run(run)
    with pytest.raises(ConfigError, match="the run has not started"):
        replay_batch(run, step=1)
    (run / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not the configuration of a run"):
        replay_batch(run, step=1)


def test_samples_of_shards_are_shown_as_in_the_training_batch(shards: ShardSet) -> None:
    data = DataConfig(threads=1, decode_threads=1)
    with TrainLoader(shards, clips=CLIPS, augment=AUGMENT, data=data, batch_size=4, seed=5) as loader:
        views = next(loader)
    shown = augmented_clips(shards, clips=CLIPS, augment=AUGMENT, samples=views.sample.tolist(), seed=5, epoch=0)
    assert np.array_equal(frames_of(shown), displayable(views.pixels, AUGMENT))
    assert shown.fps == 6 and shown.heading == ("tiny", "seed 5, epoch 0")


def test_displayable_undoes_the_normalization() -> None:
    section = AugmentConfig(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    pixels = torch.randint(0, 256, (1, 1, 3, 2, 16, 16)).float()
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (section.mean, section.std))
    restored = displayable((pixels / 255 - mean) / std, section)
    assert np.array_equal(restored, pixels.permute(0, 1, 3, 4, 5, 2).byte().numpy())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
@pytest.mark.parametrize("hue", [-0.45, -0.1, 0.15])
def test_a_described_color_has_the_factors_that_were_composed(order: tuple[int, ...], hue: float) -> None:
    def words(*, apply: bool, gray: bool) -> list[str]:
        matrix = color_matrix(
            factors=np.array([[1.3, 0.5, 0.7, hue]]),
            order=np.array([order]),
            apply=np.array([apply]),
            gray=np.array([gray]),
            mean_rgb=np.array([[100.0, 100.0, 100.0]]),
        )
        return describe_color(matrix[0])

    luma = "luma x0.65 +65"  # brightness first: half of the mean, by then 130; contrast first: half of 100, times 1.3
    assert words(apply=True, gray=False) == [luma, "saturation x0.70", f"hue {360 * hue:+.0f}°"]
    assert words(apply=True, gray=True) == ["gray", luma]
    assert words(apply=False, gray=True) == ["gray"] and words(apply=False, gray=False) == []


def clip(shade: int = 0, *, t: int = 4, size: int = 64, caption: tuple[str, ...] = ("short",)) -> DrawnClip:
    """Return a clip whose frame i has the gray value `shade + i`."""
    frames = np.empty((t, size, size, 3), dtype=np.uint8)
    frames[:] = np.arange(shade, shade + t, dtype=np.uint8)[:, None, None, None]
    return DrawnClip(frames=frames, caption=caption)


def test_a_sheet_is_as_large_as_its_clips() -> None:
    one, two = (contact_sheet([DrawnVideo(title=("a",), clips=(clip(),) * count)]) for count in (1, 2))
    assert one.width == two.width == 4 * 128 + 3 * 2 + 24
    assert two.height - one.height == 128 + 2 + 16 + 6
    titled = contact_sheet([DrawnVideo(title=("a",), clips=(clip(),), note="look")], heading=("all",))
    assert titled.height > one.height + 2 * 16


def test_every_frame_has_its_place_on_the_sheet() -> None:
    sheet = np.asarray(contact_sheet([DrawnVideo(title=("a",), clips=(clip(60),))]))
    for number in range(4):
        left = 12 + number * 130
        assert (sheet[33 : 33 + 128, left : left + 128] == 60 + number).all()


def test_text_that_is_too_long_do_not_widen_a_picture() -> None:
    caption = ("frames " + " ".join(map(str, range(100, 400))), "crop 10x10 at 0,0", "W" * 300)
    video = DrawnVideo(title=("k" * 400, "label"), clips=(clip(caption=caption),), note="reason " * 60)
    sheet, plain = (contact_sheet([one]) for one in (video, DrawnVideo(title=("a",), clips=(clip(),))))
    assert sheet.width == plain.width and sheet.height > plain.height + 5 * 16
    margin = np.asarray(sheet)[:, -12:]
    assert (margin == 255).all()


def test_an_animation_shows_one_frame_of_each_clip_at_a_time() -> None:
    videos = [
        DrawnVideo(title=(str(number),), clips=(clip(40 * number), clip(40 * number + 20))) for number in range(5)
    ]
    pictures = [np.asarray(picture) for picture in animation(videos, heading=("five",))]
    assert len(pictures) == 4
    for now, picture in enumerate(pictures):
        height, width, _ = picture.shape
        assert height % 2 == width % 2 == 0 and 0.8 < width / height < 3
        for shade in range(0, 200, 20):
            count = (picture == shade + now).all(axis=-1).sum()
            assert count >= 192 * 192 - 200  # letters may have that gray, too, but not as often
    assert [(pictures[0] != picture).any() for picture in pictures] == [False, True, True, True]


def test_an_mp4_is_what_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "clips.mp4"
    videos = [DrawnVideo(title=("a",), clips=(clip(100),))]
    size = write_pictures(path, videos, heading=("h",), fps=3.75)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", Fraction(15, 4))
        assert (stream.width, stream.height) == size
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 24 and len(shown) / 3.75 >= 6  # six times the four frames
    drawn = [np.asarray(picture) for picture in animation(videos, heading=("h",))]
    for number, picture in enumerate(shown):
        assert np.abs(picture[90:200, 20:180].astype(int) - drawn[number % 4][90:200, 20:180]).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_gif_or_webp_plays_in_time_and_forever(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clips.{suffix}"
    size = write_pictures(path, [DrawnVideo(title=("a",), clips=(clip(100),))], heading=("h",), fps=4.0)
    with Image.open(path) as picture:
        assert (picture.size, picture.n_frames, picture.info["loop"]) == (size, 4, 0)
        for number in range(4):
            picture.seek(number)
            picture.load()
            assert picture.info["duration"] == 250
            shade = np.asarray(picture.convert("RGB"))[90:200, 20:180].mean()
            assert abs(shade - 100 - number) < (1 if suffix == "gif" else 4)  # WebP leaves out steps that nobody sees


def test_samples_are_spread_or_found_by_key(shards: ShardSet) -> None:
    assert choose_samples(shards, 3) == [0, 6, 12]
    assert choose_samples(shards, 100) == list(range(13))
    assert find_samples(shards, ["v7", "v0"]) == [7, 0]
    with pytest.raises(ConfigError, match="no sample has the key 'nope'"):
        find_samples(shards, ["v7", "nope"])


def test_the_command_shows_runs_and_shards(
    shards: ShardSet,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = write_run(config, start(shards, 0, 2), step_line(2))

    def show(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rhofast", "show", *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0), capsys.readouterr().err
        raise AssertionError("the program always exits")

    for suffix in ("png", "gif", "mp4"):
        out = tmp_path / f"clips.{suffix}"
        monkeypatch.setattr(sys, "argv", [])
        code, _ = show(run, "--step", 2, "--rank", 1, "--samples", 1, "--out", out)
        assert code == 0 and out.stat().st_size > 1000
    code, _ = show(shards.root, "--key", "v3", "--set", "augment.size=16", "--out", tmp_path / "x.gif")
    assert code == 0
    for arguments, said in (
        ((run,), "a run has a batch for every step"),
        ((run, "--step", 3), "--step 3: the run has done"),
        ((run, "--step", 1, "--rank", 2), "must be in [0, 1]"),
        ((run, "--step", 1, "--seed", 2), "--seed: "),
        ((run, "--step", 1, "--out", "x.avi"), "x.avi: the suffix must be .png, .gif, .webp or .mp4"),
        ((shards.root, "--step", 1), "--step: "),
        ((tmp_path, "--step", 1), "is not a run"),
        ((tmp_path,), "no dataset.json"),
        ((shards.root, "--out", tmp_path / "no" / "x.mp4"), "no/x.mp4: there is no folder"),
    ):
        code, printed = show(*arguments)
        assert code == 2 and said in printed

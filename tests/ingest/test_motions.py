"""The generated data set: the same bytes each time, disjoint splits, classes that are motions and nothing else."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.recipes import find_records
from tests.helpers.shards import ROOT

SHARDS = ROOT / "shards"
if str(SHARDS) not in sys.path:
    sys.path.append(str(SHARDS))

import motions  # noqa: E402

VIDEOS, SIZE, FRAMES = 12, 32, 18
OPTIONS = [f"videos={VIDEOS}", f"size={SIZE}", f"frames={FRAMES}", "workers=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[VideoRecord]]:
    folder = tmp_path_factory.mktemp("motions")
    return folder, list(find_records(folder, "motions", OPTIONS))


def class_of(motion: motions.Motion) -> str:
    """The class of a motion, from its path alone."""

    def moves(path: motions.Float) -> bool:
        return bool(np.ptp(path) > 1e-6)

    if moves(motion.brightness):
        return "flicker"
    if moves(motion.size):
        return "pulse"
    if moves(motion.angle):
        turned = np.diff(np.unwrap(motion.angle))
        return "spin" if np.allclose(turned, turned[0]) else "rock"
    if moves(motion.x) and moves(motion.y):
        radius = np.hypot(motion.x, motion.y)
        return "orbit" if np.allclose(radius, radius[0]) else "jitter"
    return "sway" if moves(motion.x) else "bob"


def draws(name: str, count: int = 20) -> list[motions.Motion]:
    return [motions.draw_motion(name, np.random.default_rng(seed), 96, 12) for seed in range(count)]


@pytest.mark.parametrize("name", motions.CLASSES)
def test_each_class_moves_in_its_own_way(name: str) -> None:
    assert {class_of(motion) for motion in draws(name)} == {name}


@pytest.mark.parametrize("name", motions.CLASSES)
def test_a_mirrored_motion_is_of_the_same_class(name: str) -> None:
    for motion in draws(name):
        mirrored = motions.Motion(
            x=-motion.x, y=motion.y, size=motion.size, angle=np.pi - motion.angle, brightness=motion.brightness
        )
        assert class_of(mirrored) == name


@pytest.mark.parametrize("name", ["orbit", "spin"])
def test_both_senses_of_rotation_occur(name: str) -> None:
    senses = set()
    for motion in draws(name):
        angle = np.arctan2(motion.y, motion.x) if name == "orbit" else motion.angle
        senses.add(np.sign(np.diff(np.unwrap(angle))).mean())
    assert senses == {-1.0, 1.0}


def test_periods_do_not_depend_on_the_frame_rate() -> None:
    slow, fast = (motions.draw_motion("bob", np.random.default_rng(3), 5 * fps, fps) for fps in (12, 24))
    np.testing.assert_allclose(slow.y, fast.y[::2], atol=1e-12)


@pytest.mark.parametrize(("name", "axis"), [("bob", "y"), ("sway", "x")])
def test_the_picture_follows_the_path(name: str, axis: str) -> None:
    """The bright center of mass moves up and down, or left and right, as the path does: over short times, since the
    sprite's place wanders slowly."""
    settings = motions.Settings(difficulty=0.0, size=SIZE)
    number = motions.CLASSES.index(name)
    motion = motions.draw_motion(name, motions.generator(settings, number), settings.frames, settings.fps)
    light = motions.render(settings, number).max(axis=-1).astype(float)
    light = np.where(light > 100, light, 0)
    total = light.sum(axis=(1, 2))
    place = np.arange(SIZE)
    center = {"x": light.sum(axis=1) @ place / total, "y": light.sum(axis=2) @ place / total}
    steps, path = np.diff(center[axis]), np.diff(getattr(motion, axis))
    assert np.corrcoef(steps, path)[0, 1] > 0.9


def test_a_video_is_a_function_of_its_settings_and_number() -> None:
    settings = motions.Settings(size=SIZE, frames=FRAMES)
    np.testing.assert_array_equal(motions.render(settings, 5), motions.render(settings, 5))
    for other in (
        motions.Settings(size=SIZE, frames=FRAMES, seed=1),
        motions.Settings(size=SIZE, frames=FRAMES, split="test"),
        motions.Settings(size=SIZE, frames=FRAMES, difficulty=1.0),
    ):
        assert not np.array_equal(motions.render(settings, 5), motions.render(other, 5))


def test_train_and_test_share_no_direction_of_texture() -> None:
    train, test = (motions.wave_directions(split) for split in motions.SPLITS)
    apart = np.abs(train[:, None] - test[None, :])
    assert np.minimum(apart, np.pi - apart).min() == pytest.approx(np.pi / (2 * motions.DIRECTIONS))


def test_records_are_ordered_labeled_and_balanced(made: tuple[Path, list[VideoRecord]]) -> None:
    folder, records = made
    assert [record.label for record in records] == [number % 8 for number in range(VIDEOS)]
    assert all(record.label_name == sorted(motions.CLASSES)[record.label or 0] for record in records)
    assert all(record.path == folder / "train" / str(record.label_name) / f"{record.key}.mp4" for record in records)
    assert len({record.key for record in records}) == VIDEOS


@pytest.mark.parametrize(("scenes", "balance"), [(1, "even"), (3, "even"), (1, "zipf"), (3, "zipf")])
def test_classes_are_as_frequent_as_the_balance_says(scenes: int, balance: str) -> None:
    settings = motions.Settings(scenes=scenes, balance=balance)  # type: ignore[arg-type]
    labels = [motions.label_of(settings, number, scene) for number in range(480) for scene in range(scenes)]
    share = np.bincount(labels, minlength=8) / len(labels)
    wanted = np.ones(8) if balance == "even" else 1 / np.arange(1, 9)
    np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.01)


def test_scenes_follow_each_other_and_the_first_is_the_label() -> None:
    settings, part = motions.Settings(frames=24, scenes=3), motions.Settings(frames=8)
    frames = motions.render(settings, 5)
    names = [motions.CLASSES[motions.label_of(settings, 5, scene)] for scene in range(3)]
    for scene, name in enumerate(names):
        alone = motions.render_scene(part, name, motions.generator(settings, 5, scene))
        np.testing.assert_array_equal(frames[8 * scene : 8 * scene + 8], alone)
    assert motions.video_name(settings, 5).startswith(names[0]) and len(set(names)) > 1


def test_the_files_play(made: tuple[Path, list[VideoRecord]]) -> None:
    for number, record in enumerate(made[1][:2]):
        with av.open(str(record.path)) as container:
            stream = container.streams.video[0]
            codec = stream.codec_context
            assert (codec.name, codec.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        drawn = motions.render(motions.Settings(size=SIZE, frames=FRAMES), number)
        assert frames.shape == drawn.shape
        assert np.abs(frames.astype(float) - drawn).mean() < 8


def test_a_second_call_makes_only_what_is_missing_and_the_same_bytes(made: tuple[Path, list[VideoRecord]]) -> None:
    folder, records = made
    lost = records[3].path
    before = {record.key: (record.path.stat().st_mtime_ns, record.path.read_bytes()) for record in records}
    lost.unlink()
    assert list(find_records(folder, "motions", OPTIONS)) == records
    for record in records:
        written, content = before[record.key]
        assert record.path.read_bytes() == content
        assert (record.path.stat().st_mtime_ns == written) == (record.path != lost)


def test_encoding_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Many times, since x264 left to itself differs in about one run of twenty."""
    frames = motions.render(motions.Settings(size=SIZE, frames=FRAMES), 3)
    contents = set()
    for number in range(40):
        motions.encode(tmp_path / f"{number}.mp4", frames, 12)
        contents.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(contents) == 1


def test_more_videos_continue_the_set(tmp_path: Path) -> None:
    settings = motions.Settings(size=16, frames=2)
    assert list(motions.make_videos(tmp_path, settings, 1, workers=1)) == [0]
    assert list(motions.make_videos(tmp_path, settings, 2, workers=1)) == [0, 1]


def test_a_folder_of_other_settings_is_refused(made: tuple[Path, list[VideoRecord]]) -> None:
    folder, _ = made
    with pytest.raises(IngestError, match="holds videos with other settings"):
        list(find_records(folder, "motions", [*OPTIONS, "seed=1"]))
    assert json.loads((folder / "train" / "motions.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"difficulty": 1.5},
        {"size": 33},
        {"size": 8},
        {"frames": 0},
        {"fps": 0},
        {"split": "val"},
        {"scenes": 5},
        {"balance": "odd"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(motions.records(tmp_path, videos=1, **wrong))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())

"""The test of a detector: what is scored, what it is compared with, and what is written down."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from benchmarks.evaluation.ava_replica import CLASSES, FPS, START, write_csv
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.data.format.box_file import read_boxes, write_boxes
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import KeyFrames
from rhofast.errors import ConfigError, NotFiniteError
from rhofast.evaluation.detection import (
    MAP,
    OFFICIAL_MAP,
    Detected,
    boxes_to_test_on,
    boxes_to_train_on,
    detect,
    score_detections,
    write_detections,
)
from rhofast.evaluation.detector import Detector, check_maps, map_stride
from rhofast.ingest.ava_boxes import make_boxes
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.positions import resized_frames
from tests.evaluation.test_frame_ap import plain_average_precision, plain_iou
from tests.helpers.actors import movie
from tests.helpers.shards import write_shards

PAGE = ["name=x", "clips.num_frames=2", "clips.frame_stride=2", f"clips.fps={FPS}", "augment.size=48"]
PAGE += ["data.threads=2", "eval.batch_size=3"]


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("movies") / "set", [movie(number) for number in range(3)], start=START)


@pytest.fixture(scope="module")
def found(movies: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> KeyFrames:
    folder = tmp_path_factory.mktemp("csv")
    files = write_csv(folder, range(3), split="val")
    truth, classes = files.pop("truth"), files.pop("classes")
    write_boxes(folder / "boxes.arrow", *make_boxes(movies, truth, classes, **files))
    return read_boxes(folder / "boxes.arrow", movies)


def config(*changes: str) -> Config:
    return load_config(None, [*PAGE, *changes])


def network() -> Detector:
    torch.manual_seed(0)
    backbone = build_backbone("slow_r18", {"width": 4, "last_stride": 1, "last_dilation": 2})
    return Detector(backbone, 80, batch_stats=False)


def test_good_boxes_are_scored_and_annotators_are_believed(found: KeyFrames) -> None:
    assert len(found) == 11 and len(found.boxes) == 11 * (2 + 3)  # one of twelve key frames is excluded
    chosen = boxes_to_test_on(found, config(), where="f")
    assert chosen.detected.all() and len(chosen.boxes) == 22 and set(chosen.score) == {0.95}
    assert not boxes_to_test_on(found, config("eval.test_boxes=truth"), where="f").detected.any()
    assert len(boxes_to_test_on(found, config("eval.box_score=0.1"), where="f").boxes) == 33
    assert len(boxes_to_train_on(found, config(), where="f").boxes) == 44
    with pytest.raises(ConfigError, match=r"f: no detected box has eval\.box_score=0\.99; the best one has 0\.95"):
        boxes_to_test_on(found, config("eval.box_score=0.99"), where="f")
    with pytest.raises(ConfigError, match=r"f: no detected boxes \(.*--detections"):
        boxes_to_test_on(found.where(~found.detected), config(), where="f")
    with pytest.raises(ConfigError, match="f: no ground truth"):
        boxes_to_test_on(found.where(found.detected), config(), where="f")


def test_a_box_is_pooled_from_its_part_of_the_map() -> None:
    class Position(nn.Module):
        """Two features: row and column of each place of a map of 1/16."""

        num_features = 2

        def last_map(self, x: torch.Tensor) -> torch.Tensor:
            n, t, h, w = x.shape[0], x.shape[2], -(-x.shape[3] // 16), -(-x.shape[4] // 16)
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            maps = torch.stack([rows, columns]).float()[None, :, None].repeat(n, 1, t, 1, 1)
            return maps * torch.arange(1, n + 1).view(-1, 1, 1, 1, 1)

    detector = Detector(Position(), 3, batch_stats=True)
    nn.init.zeros_(detector.head.weight)
    detector.head.weight.data[:2] = torch.eye(2)
    boxes = torch.tensor([[0, 16, 32, 64, 96], [1, 16, 32, 64, 96], [0, 0, 0, 200, 120.0]])
    detector.train()
    logits = detector(torch.zeros(2, 3, 4, 120, 200), boxes)
    # The maximum lies in the last cell: the mean position of its samples, minus the half pixel of the alignment.
    expected = roi_align(
        detector.backbone.last_map(torch.zeros(2, 3, 1, 120, 200))[:, :, 0], boxes, 7, 1 / 16, -1, True
    )
    assert torch.allclose(logits[:, :2], expected.amax(dim=(2, 3)))
    assert logits[0].tolist() == pytest.approx([96 / 16 - 0.5 - 4 / 14, 64 / 16 - 0.5 - 3 / 14, 0], abs=1e-5)
    assert logits[1, :2].tolist() == pytest.approx([2 * value for value in logits[0, :2].tolist()])
    detector.eval()
    assert torch.allclose(detector(torch.zeros(2, 3, 4, 120, 200), boxes), logits.sigmoid())


def test_the_stride_of_a_map_is_a_power_of_two() -> None:
    assert map_stride(torch.Size((256, 341)), torch.Size((16, 22))) == 16
    assert map_stride(torch.Size((224, 224)), torch.Size((7, 7))) == 32
    assert map_stride(torch.Size((48, 72)), torch.Size((3, 5))) == 16


SMALL: dict[str, dict[str, object]] = {
    "slow": {"width": 2},
    "s3d": {"width": 4},
    "vit": {"width": 24, "depth": 2, "heads": 2, "position": "sincos3d"},
}


@pytest.mark.parametrize(
    "name", ["slow_r18", "slow_r50", "s3d", "s3dg", "vit", "r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"]
)
def test_the_map_of_every_kind_of_backbone_changes_where_the_frame_does(name: str) -> None:
    """A square of noise moves through a dark frame whose sides no stride divides; what it changes moves as far."""
    options = next((given for start, given in SMALL.items() if name.startswith(start)), {})
    torch.manual_seed(1)
    backbone = build_backbone(name, options).eval()
    check_maps(backbone, name)
    unit = 32 if name.startswith("s3d") else 16  # S3D looks far around each place
    stride, side, corners = backbone.map_stride, 3 * unit, [(0, 0), (6 * unit, 0), (0, 4 * unit)]
    height, width = 7 * unit, 9 * unit
    clips = torch.zeros(4, 3, 6, height, width)
    light = torch.randn(3, 6, side, side)
    for clip, (x, y) in zip(clips, corners, strict=False):
        clip[..., y : y + side, x : x + side] = light
    with torch.no_grad():
        maps = backbone.last_map(clips).double()
    assert tuple(maps.shape[-2:]) in {
        (height // stride, width // stride),
        (-(-height // stride), -(-width // stride)),
    }
    assert maps.shape[1] == backbone.num_features
    changed = (maps[:3] - maps[3:]).square().sum(dim=(1, 2))
    changed = changed / changed.sum(dim=(1, 2), keepdim=True)
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in changed.shape[1:]), indexing="ij")
    x, y = ((changed * each).sum(dim=(1, 2)) * stride for each in (columns, rows))
    assert x[1] - x[0] > 6 * unit / 4 and abs(y[1] - y[0]) < unit
    assert y[2] - y[0] > 4 * unit / 4 and abs(x[2] - x[0]) < unit


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mvit_v2_s", {}, r"backbone\.name=mvit_v2_s: it takes frames of 224 x 224 pixels alone"),
        ("vit", {**SMALL["vit"], "keep": 0.5}, r"backbone\.keep=0\.5: detection needs the tokens of all places"),
        ("vit", {**SMALL["vit"], "position": "sincos1d"}, r"sincos1d numbers .*backbone\.resize_positions=true"),
    ],
)
def test_a_backbone_without_maps_of_any_frame_is_refused(name: str, options: dict[str, object], says: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, options)
    with pytest.raises(ConfigError, match=says):
        check_maps(backbone, name)
    with pytest.raises(ConfigError, match=r"backbone\.name=mine: it gives no map"):
        check_maps(nn.Linear(1, 1), "mine")


def test_a_vit_places_its_tokens_and_resizes_the_positions_of_pretraining() -> None:
    options = {**SMALL["vit"], "position": "sincos1d", "position_side": 4, "resize_positions": True}
    torch.manual_seed(0)
    vit = build_backbone("vit", options).eval()
    check_maps(vit, "vit")
    square, wide = torch.randn(2, 3, 4, 64, 64), torch.randn(2, 3, 4, 48, 96)
    with torch.no_grad():
        maps = vit.last_map(square)
        assert maps.shape == (2, 24, 2, 4, 4)
        assert torch.equal(maps.flatten(2).transpose(1, 2), vit.tokens(square))
        numbered = build_backbone("vit", {**options, "resize_positions": False}).eval()
        numbered.load_state_dict(vit.state_dict())
        assert torch.equal(maps, numbered.last_map(square))  # the size is that of pretraining
        assert not torch.allclose(vit.last_map(wide), numbered.last_map(wide))
        detector = Detector(vit, 3, batch_stats=False).eval()
        boxes = torch.tensor([[0, 3.0, 4, 30, 40], [1, 50, 10, 90, 47]])
        padded = torch.nn.functional.pad(wide[..., :45, :89], (0, 7, 0, 3))
        assert torch.equal(detector(wide[..., :45, :89], boxes), detector(padded, boxes))


def test_resized_positions_are_those_between_their_neighbors() -> None:
    table = resized_frames(torch.arange(2 * 4 * 4.0).view(-1, 1), 4, (2, 8, 4)).view(2, 8, 4)
    assert torch.equal(table[1] - table[0], torch.full((8, 4), 16.0))
    assert torch.allclose(table[:, 3:5].mean(dim=1), (torch.arange(4.0) + 6) + torch.tensor([[0.0], [16.0]]))
    assert (table.diff(dim=1) > 0).all() and torch.allclose(table.diff(dim=2), torch.tensor(1.0))


def test_the_scores_of_a_network_do_not_depend_on_the_batch_and_are_written_down(
    movies: ShardSet, found: KeyFrames, tmp_path: Path
) -> None:
    chosen, done = boxes_to_test_on(found, config(), where="f"), list[tuple[int, int]]()
    detector = network().train()
    detected = detect(detector, movies, chosen, config(), progress=lambda *now: done.append(now))
    assert detector.training and done[-1] == (11, 11) and not detected.left_out
    assert detected.box.tolist() == list(range(22)) and detected.scores.shape == (22, 3)
    assert (detected.scores > 0).all() and (detected.scores < 1).all() and np.ptp(detected.scores[:, 0]) > 0
    one_by_one = detect(detector, movies, chosen, config("eval.batch_size=1"))
    assert np.allclose(one_by_one.scores, detected.scores, atol=1e-5)
    path = tmp_path / "detections.csv"
    write_detections(path, detected, movies)
    lines = path.read_text().splitlines()
    assert len(lines) == 22 * 3
    assert lines[0].startswith(f"v0,0902,{chosen.boxes[0, 0]:g},")  # second 901 of v0 is excluded
    assert [int(line.split(",")[6]) for line in lines[:3]] == [8, 12, 17]
    assert len({tuple(line.split(",")[:2]) for line in lines}) == 11
    assert np.float32(lines[1].split(",")[7]) == detected.scores[0, 1]


def test_map_is_what_a_plain_reading_of_the_files_gives(movies: ShardSet, found: KeyFrames, tmp_path: Path) -> None:
    """The csv files alone, by the definition written down box by box, against the scores of a whole test."""
    rng = np.random.default_rng(0)
    chosen = boxes_to_test_on(found, config("eval.box_score=0.1"), where="f")
    # neighbors among the numbers of float32, which six digits would not tell apart
    scores = (np.float32(0.5).view(np.int32) + rng.permutation(len(chosen.boxes) * 3).astype(np.int32)).view(np.float32)
    scores = scores.reshape(-1, 3)
    detected = Detected(key_frames=chosen, box=np.arange(len(chosen.boxes)), scores=scores, left_out=[])
    result = score_detections(detected, found)
    write_detections(tmp_path / "detections.csv", detected, movies)
    written = [line.split(",") for line in (tmp_path / "detections.csv").read_text().splitlines()]
    assert np.array_equal(np.array([row[7] for row in written], dtype=np.float32), scores.ravel())
    assert np.array_equal(np.array([row[2:6] for row in written[::3]], dtype=np.float64), chosen.boxes)
    files = write_csv(tmp_path / "csv", range(3), split="val")
    excluded = {tuple(line.split(",")) for line in files["excluded"].read_text().split()}
    values = {}
    for action, name in ((8, "walk"), (12, "stand"), (17, "wave")):
        tables = []
        for path in (files["truth"], tmp_path / "detections.csv"):
            rows = [line.split(",") for line in path.read_text().splitlines()]
            tables.append(
                [
                    (hash((row[0], row[1])), tuple(map(float, row[2:6])), float(row[7]))
                    for row in rows
                    if int(row[6]) == action and (row[0], row[1]) not in excluded
                ]
            )
        values[name] = plain_average_precision([row[:2] for row in tables[0]], tables[1])
    assert result.per_class == pytest.approx(values)
    assert result.measures[MAP] == pytest.approx(np.mean(list(values.values())))
    assert result.measures[OFFICIAL_MAP] == result.measures[MAP]  # no frame has more than 50 scores
    assert 0 < result.chance[MAP] < 0.6
    assert result.samples == 11 and result.confusion is None and list(result.per_class) == ["walk", "stand", "wave"]


def published_measure(files: dict[str, Path], *, capacity: int | None) -> dict[str, float]:
    """The average precision of each class, of the four csv files and the list of classes alone, line by line.

    Of the lines of each key frame that is not excluded, those of the classes that count are looked at, and of
    detections the `capacity` best. Of equal scores the first of the file is better.
    """
    listed = re.findall(r'name: "(.*?)" label_id: (\d+)', files["classes"].read_text())
    names = {int(number): name for name, number in listed}
    excluded = set(files["excluded"].read_text().split())
    lines: dict[str, list[tuple[str, tuple[float, ...], int, float]]] = {}
    for kind in ("truth", "scored"):
        rows = [line.split(",") for line in files[kind].read_text().splitlines()]
        parsed = [(",".join(row[:2]), tuple(map(float, row[2:6])), int(row[6]), float(row[7])) for row in rows]
        lines[kind] = [row for row in parsed if row[0] not in excluded and row[2] in names]
    room: dict[str, int] = {}
    kept = []
    for row in sorted(lines["scored"], key=lambda row: -row[3]):
        room[row[0]] = room.get(row[0], 0) + 1
        if capacity is None or room[row[0]] <= capacity:
            kept.append(row)
    found = {}
    for action, name in names.items():
        true = [row[:2] for row in lines["truth"] if row[2] == action]
        taken, hits, points = set[int](), 0, []
        for count, (frame, box, *_) in enumerate((row for row in kept if row[2] == action), start=1):
            shares = [plain_iou(box, other) if at == frame else -1.0 for at, other in true]
            best = int(np.argmax(shares))
            if shares[best] >= 0.5 and best not in taken:
                taken.add(best)
                hits += 1
            points.append((hits / len(true), hits / count))
        recalls = sorted({recall for recall, _ in points} - {0.0})
        heights = [max(precision for other, precision in points if other >= recall) for recall in recalls]
        found[name] = float(np.dot(np.diff([0.0, *recalls]), heights))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_map_of_crowded_frames_with_equal_scores_is_that_of_the_files(
    movies: ShardSet, tmp_path: Path, seed: int
) -> None:
    """Sixty scores per key frame in ten steps, persons found twice, excluded key frames, and an action that counts for
    nothing: everything by which a measure of detections usually differs from the published one."""
    rng = np.random.default_rng(seed)
    files = {name: tmp_path / f"{name}.csv" for name in ("truth", "detections", "excluded", "scored")}
    files["classes"] = tmp_path / "classes.pbtxt"
    truth, drawn = list[str](), list[str]()
    for key, second in ((f"v{video}", START + second) for video in range(3) for second in range(1, 5)):
        corner = rng.uniform(0, 0.5, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (4, 2))], axis=1)
        for person, box in enumerate(boxes):
            start = f"{key},{second:04d},{','.join(f'{side:.3f}' for side in box)}"
            truth += [f"{start},{action},{person}" for action in (5, 8, 12, 17) if rng.random() < 0.5]
        near = np.clip(boxes[rng.integers(0, 4, 20)] + rng.normal(0, 0.03, (20, 4)), 0, 1)
        drawn += [f"{key},{second:04d},{','.join(f'{side:.4f}' for side in box)},,0.95" for box in near]
    files["truth"].write_text("\n".join(truth))
    files["detections"].write_text("\n".join(drawn))
    files["excluded"].write_text(f"v0,{START + 1:04d}\nv2,{START + 3:04d}\n")
    files["classes"].write_text(CLASSES)
    given = {name: files[name] for name in ("detections", "excluded")}
    write_boxes(tmp_path / "boxes.arrow", *make_boxes(movies, files["truth"], files["classes"], **given))
    found = read_boxes(tmp_path / "boxes.arrow", movies)
    chosen = boxes_to_test_on(found, config(), where="f")
    assert len(chosen) == 10 and len(chosen.boxes) == 200
    scores = (rng.integers(1, 11, (200, 3)) / 10).astype(np.float32)
    detected = Detected(key_frames=chosen, box=np.arange(200), scores=scores, left_out=[])
    write_detections(files["scored"], detected, movies)
    result = score_detections(detected, found)
    every, best = (published_measure(files, capacity=capacity) for capacity in (None, 50))
    assert result.per_class == pytest.approx(every)
    assert result.measures == {
        MAP: pytest.approx(np.mean(list(every.values()))),
        OFFICIAL_MAP: pytest.approx(np.mean(list(best.values()))),
    }
    assert result.measures[MAP] != result.measures[OFFICIAL_MAP]


def test_the_best_scores_have_a_map_of_one_and_missed_boxes_cost_recall(found: KeyFrames) -> None:
    chosen = boxes_to_test_on(found, config(), where="f")
    truth = found.where(~found.detected)
    order = [8, 12, 17]
    targets = truth.targets(np.arange(len(truth.boxes)))[:, np.array(order) - 1]  # boxes are in the same order
    right = Detected(key_frames=chosen, box=np.arange(22), scores=targets, left_out=[])
    assert score_detections(right, found).measures == {MAP: 1.0, OFFICIAL_MAP: 1.0}
    half = Detected(key_frames=chosen, box=np.arange(0, 22, 2), scores=targets[::2], left_out=["v0: damaged"])
    result = score_detections(half, found)
    assert result.left_out == ["v0: damaged"]
    assert result.per_class == pytest.approx(
        {name: targets[::2, c].sum() / targets[:, c].sum() for c, name in enumerate(("walk", "stand", "wave"))}
    )


def test_an_action_that_annotators_list_twice_is_to_be_found_twice(movies: ShardSet, tmp_path: Path) -> None:
    """Two persons may have one box; the official script counts lines, and training one action of one box."""
    files = write_csv(tmp_path, range(3), split="val")
    first = files["truth"].read_text().splitlines()[4].split(",")
    twice = files["truth"].read_text() + ",".join([*first[:7], "9"]) + "\n"
    action = int(first[6])
    results = []
    for name, text in (("once", files["truth"].read_text()), ("twice", twice)):
        files["truth"].write_text(text)
        path = tmp_path / f"{name}.arrow"
        rest = {"detections": files["detections"], "excluded": files["excluded"]}
        write_boxes(path, *make_boxes(movies, files["truth"], files["classes"], **rest))
        found = read_boxes(path, movies)
        true = found.where(~found.detected)
        targets = true.targets(np.arange(len(true.boxes)))
        assert targets.max() == 1
        chosen = boxes_to_test_on(found, config("eval.test_boxes=truth"), where="f")
        right = Detected(
            key_frames=chosen,
            box=np.arange(len(true.boxes)),
            scores=targets[:, np.array(list(found.classes)) - 1],
            left_out=[],
        )
        results.append((score_detections(right, found).per_class, int(targets[:, action - 1].sum())))
    name = {8: "walk", 12: "stand", 17: "wave"}[action]
    (once, count), (again, same) = results
    assert once == dict.fromkeys(once, 1.0) and same == count
    assert again == pytest.approx({**once, name: count / (count + 1)})


def test_scores_that_are_not_finite_are_an_error(movies: ShardSet, found: KeyFrames) -> None:
    detector = network()
    nn.init.constant_(detector.head.bias, float("nan"))
    with pytest.raises(NotFiniteError, match="not finite"):
        detect(detector, movies, boxes_to_test_on(found, config(), where="f"), config())

"""Feature files with keys, pictures of nearest neighbors, and the commands of evaluation."""

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rhofast.analysis.neighbors import draw_neighbors, nearest, open_bank
from rhofast.checkpoint.backbone_file import save_backbone
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.evaluation.embed import embed
from rhofast.evaluation.features import extract_features
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_formats.pyslowfast import pyslowfast_state
from rhofast.training.trainer import train
from tests.helpers.program import run, run_ranks
from tests.helpers.results import read_one
from tests.helpers.shards import TINY_PAGE, damage_unit, write_shards

SETTINGS = [
    *("backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2", "clips.frame_stride=2"),
    *("clips.fps=12", "eval.batch_size=8", "data.threads=2", "data.decode_threads=1"),
]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "200")


def given(*settings: str) -> list[str]:
    return [text for setting in settings for text in ("--set", setting)]


def test_the_three_forms_hold_the_same_features_with_their_keys(shards: ShardSet, tmp_path: Path) -> None:
    damage_unit(shards, 5, 0)  # the first frame of v5
    model = open_model("random", overrides=SETTINGS)
    for suffix in ("parquet", "arrow", "npy"):
        result = embed(model, shards, tmp_path / f"x.{suffix}")
        assert (result.samples, result.width, len(result.left_out)) == (12, 32, 1)
    expected = extract_features(model.backbone, shards, model.config)
    values = np.load(tmp_path / "x.npy")
    assert np.allclose(values, expected.values.mean(axis=1), atol=1e-6) and values.dtype == np.float32
    with (tmp_path / "x-keys.csv").open() as file:
        rows = list(csv.DictReader(file))
    samples = [sample for sample in range(13) if sample != 5]
    assert [row["key"] for row in rows] == [f"v{sample}" for sample in samples]
    assert rows[3] == {"sample": "3", "key": "v3", "label": "0", "class": "class 0"}
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column("label").to_pylist() == [sample % 3 for sample in samples]
    assert np.array_equal(np.stack(table.column("feature").to_numpy()), values)
    with pa.ipc.open_file(str(tmp_path / "x.arrow")) as arrow:
        assert arrow.read_all().equals(table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "x-keys.csv", "x.arrow", "x.npy", "x.parquet"]


def test_unlabeled_samples_have_features_too(members: list[bytes], tmp_path: Path) -> None:
    unlabeled = write_shards(tmp_path / "u", members[:3])
    embed(open_model("random", overrides=SETTINGS), unlabeled, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").column("class").to_pylist() == [None] * 3


def test_no_file_is_left_if_no_sample_can_be_read(members: list[bytes], tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "one", members[:1], labels=[0])
    for unit in range(24):
        damage_unit(shards, 0, unit)
    with pytest.raises(ShardFormatError, match="no sample could be read"):
        embed(open_model("random", overrides=SETTINGS), shards, tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_two_ranks_write_what_one_writes(shards: ShardSet, tmp_path: Path) -> None:
    embed(open_model("random", overrides=SETTINGS), shards, tmp_path / "one.parquet")
    run_ranks("-m", "rhofast", "embed", "random", shards.root, tmp_path / "two.parquet", *given(*SETTINGS))
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.drop_columns("feature").equals(two.drop_columns("feature"))
    groups = [pq.ParquetFile(tmp_path / f"{name}.parquet").metadata.num_row_groups for name in ("one", "two")]
    assert groups == [1, 1]
    features = [np.stack(table.column("feature").to_numpy()) for table in (one, two)]
    assert np.allclose(*features, atol=1e-6)


def test_row_groups_have_equal_size(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhofast.evaluation.embed._GROUP", 5 * 32)
    model = open_model("random", overrides=SETTINGS)
    embed(model, shards, tmp_path / "x.parquet")
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [5, 5, 3]
    assert file.read().column("sample").to_pylist() == list(range(13))


def test_only_rank_0_draws(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_unit(shards, 5, 0)
    model, bank, queries, chosen = open_bank(
        "random", bank=shards.root, queries=None, keys=["v4"], samples=1, overrides=SETTINGS
    )
    monkeypatch.setattr("rhofast.analysis.neighbors.rank", lambda: 1)
    drawn = draw_neighbors(model, bank, queries, chosen, tmp_path / "n.png")
    assert len(drawn.near) == 1 and len(drawn.left_out) == 1 and "'v5'" in drawn.left_out[0]
    assert not (tmp_path / "n.png").exists()


def test_an_output_that_cannot_be_written_is_refused_before_computing(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it began")

    for name in ("evaluation.task.open_task", "analysis.neighbors.open_bank", "evaluation.model.open_model"):
        monkeypatch.setattr(f"rhofast.{name}", never)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.npy").mkdir()
    sets = ["random", "--train", shards.root, "--test", shards.root]
    config = ["--config", "finetune.toml"]
    for target, said in (("no/x", "no folder"), ("folder", "a folder, not a file")):
        for verb in (["knn", *sets], ["linear", *sets], ["finetune", *sets, *config]):
            assert run("eval", *verb, "--out", f"{target}.json") == 2
            assert said in capsys.readouterr().err
        assert run("embed", "random", shards.root, f"{target}.npy") == 2
        assert said in capsys.readouterr().err
    assert run("eval", "linear", *sets, "--resume") == 2
    assert "--resume requires --config" in capsys.readouterr().err
    assert run("show", "neighbors", "random", "--train", shards.root, "--out", "no/x.png") == 2
    assert "no folder" in capsys.readouterr().err


def test_files_that_are_not_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "r3d_18-other.pth")
    for name, said in {
        "gone.pth": "gone.pth: no such file",
        "gone.safetensors": "gone.safetensors: no such file",
        "text.pth": r"text.pth: cannot be read as a checkpoint of torch \(it is another kind",
        "r3d_18-other.pth": "r3d_18-other.pth: no entry of the file belongs",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            open_model(tmp_path / name)
        assert "weights_only" not in str(caught.value)


def test_every_kind_of_backbone_opens_from_one_argument(shards: ShardSet, tmp_path: Path) -> None:
    config_file = tmp_path / "tiny.toml"
    config_file.write_text(TINY_PAGE)
    train(load_config(config_file, [f"out={tmp_path}", f"data.train={shards.root}"]))
    of_run = open_model(tmp_path / "tiny")
    assert (of_run.step, of_run.config.clips.num_frames, of_run.folder) == (2, 2, tmp_path / "tiny")
    assert open_model(tmp_path / "tiny/checkpoints/step-00000002").origin == "rhofast run tiny, step 2"
    assert run("export", "tiny", "b.safetensors") == 0
    of_file = open_model("b.safetensors")
    assert (of_file.config.clips.fps, of_file.config.augment.size) == (12, 16)
    for key, value in of_run.backbone.state_dict().items():
        assert torch.equal(value, of_file.backbone.state_dict()[key])

    slow = build_backbone("slow_r50", {"width": 4})
    torch.save({"model_state": pyslowfast_state(slow), "cfg": "DATA:\n  NUM_FRAMES: 16\n"}, "official.pyth")  # type: ignore[arg-type]
    official = open_model("official.pyth", overrides=["backbone.width=4"])
    assert official.config.clips.num_frames == 16
    assert torch.equal(official.backbone.stem.weight, slow.stem.weight)  # type: ignore[union-attr]

    from torchvision.models.video import r3d_18

    theirs = r3d_18(weights=None)
    torch.save(theirs.state_dict(), "r3d_18-abc.pth")
    named = open_model("r3d_18-abc.pth")
    assert (named.config.backbone.name, named.config.augment.size) == ("r3d_18", 112)
    assert torch.equal(named.backbone.stem[0].weight, theirs.stem[0].weight)  # type: ignore[union-attr, index]
    torch.save(theirs.state_dict(), "mine.pth")
    for source, said in (
        ("mine.pth", "file name does not say which backbone"),
        ("official.pyth", "another network"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_model(source)
    with pytest.raises(ConfigError, match=r"backbone\.width=8: the weights belong to backbone\.width=4"):
        open_model(tmp_path / "tiny", overrides=["backbone.width=8"])


def test_the_nearest_are_the_nearest_and_not_the_same_source(shards: ShardSet, tmp_path: Path) -> None:
    model, bank, queries, chosen = open_bank(
        "random", bank=shards.root, queries=None, keys=["v4", "v9"], samples=1, overrides=SETTINGS
    )
    assert chosen.tolist() == [4, 9] and queries is bank
    for suffix in ("png", "gif"):
        found = draw_neighbors(model, bank, queries, chosen, tmp_path / f"n.{suffix}", count=3).near
        with Image.open(tmp_path / f"n.{suffix}") as picture:
            assert picture.width > 4 * 192
    every = extract_features(model.backbone, bank, model.config)
    rows = every.values.mean(axis=1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for near in found:
        cosine = rows @ rows[near.query]
        cosine[near.query] = -1
        assert np.allclose(near.cosine, np.sort(cosine)[::-1][:3], atol=1e-5)
        assert np.allclose(cosine[list(near.neighbors)], near.cosine, atol=1e-5)
    device = torch.device("cpu")
    same = np.eye(13, dtype=bool) | (np.random.default_rng(0).random((13, 13)) < 0.4)  # of each query other numbers
    for near in nearest(every, every, same, 4, device=device):
        cosine = np.where(same[near.query], -2, rows @ rows[near.query])
        assert list(near.neighbors) == np.argsort(-cosine, kind="stable")[: min(4, (cosine > -2).sum())].tolist()
    everything = nearest(every, every, np.eye(13, dtype=bool), 99, device=device)
    assert all(len(near.neighbors) == 12 and near.query not in near.neighbors for near in everything)


def test_the_commands_print_their_results(
    shards: ShardSet, members: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = write_shards(tmp_path / "bank", members[:9], labels=[video % 3 for video in range(9)])
    test = write_shards(tmp_path / "test", members[9:], labels=[video % 3 for video in range(4)])
    sets = ["--train", bank.root, "--test", test.root]
    settings = given(*SETTINGS, "eval.test_views=1")
    for verb in ("knn", "linear"):
        assert run("eval", verb, "random", *sets, *settings) == 0
        said = capsys.readouterr().out
        assert "chance" in said and "class 2" in said and "│ untrained" in said and "slow_r18, untrained" in said
        kept = read_one(tmp_path / "runs/random", verb)
        assert kept["kind"] == verb and kept["trained"]["samples"] == 4 and kept["step"] == 0
        with Image.open(next((tmp_path / "runs/random/results").glob(f"{verb}-*-confusion.png"))) as picture:
            assert picture.width > 300
    assert run("eval", "knn", "random", shards.root, "--train", bank.root, *settings) == 2
    assert "9 of 13 test samples" in capsys.readouterr().err
    assert run("eval", "knn", "random", shards.root, "--train", bank.root, "--allow-overlap", *settings) == 0
    assert "warning: 9 of 13 test samples" in " ".join(capsys.readouterr().err.split())
    assert run("show", "neighbors", "random", "--train", bank.root, "--out", "n.png", *settings) == 0
    assert run("embed", "random", test.root, "x.npy", *settings) == 0
    assert "4 samples, 32 numbers each" in capsys.readouterr().out
    assert run("embed", "random", test.root, "x.csv", *settings) == 2
    assert ".parquet, .arrow, .npy" in capsys.readouterr().err
    assert run("eval", "knn", "random", "--train", bank.root) == 2
    backbone, card = build_backbone("slow_r18", {"width": 4}), {"origin": "a test", "input": {}}
    save_backbone(backbone, tmp_path / "b.safetensors", name="slow_r18", options={"width": 4}, card=card)
    assert run("eval", "linear", "b.safetensors", *sets, *given(*SETTINGS[2:], "eval.test_views=1")) == 0
    assert "a test" in capsys.readouterr().out and read_one(tmp_path / "runs/b", "linear")["backbone"] == "loaded"

"""A config is read strictly, and an error is one line."""

import re
from pathlib import Path

import pytest
import torch

from rhofast.config.load import dump_config, load_config, parse_config
from rhofast.config.schema import AugmentConfig, ShardsConfig, SourceConfig
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import METHODS, build_method
from rhofast.training.optim import learning_rate
from tests.helpers.reference import needs_vectors, numbers
from tests.helpers.shards import ROOT

CONFIG = """
name = "run"
[clips]
num_clips = 3
[augment]
area = [0.3, 0.9]
[method]
name = "byol"
hidden = 512
[train]
epochs = 10
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    return path


def test_a_config_is_read_with_its_defaults(config_path: Path) -> None:
    config = load_config(config_path)
    assert (config.clips.num_clips, config.clips.num_frames) == (3, 8)
    assert config.augment.area == (0.3, 0.9)
    assert (config.method.name, config.method.options) == ("byol", {"hidden": 512})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("clips.num_frames=16", 16),
        ("data.test=some/folder", ShardsConfig(shards="some/folder")),
        ("data.train=some/folder", (SourceConfig(shards="some/folder"),)),
        ("data.train=s3://bucket/set", (SourceConfig(shards="s3://bucket/set"),)),
        (
            "data.train=[{shards='a', weight=3}, {shards='b'}, 'c']",
            (SourceConfig(shards="a", weight=3.0), SourceConfig(shards="b"), SourceConfig(shards="c")),
        ),
        (
            "data.train={shards='a', keep='k.txt'}",
            (SourceConfig(shards="a", keep=Path("k.txt")),),
        ),
        ("data.test={shards='a', keep='k.txt'}", ShardsConfig(shards="a", keep=Path("k.txt"))),
        ("data.train=[]", ()),
        ("train.steps=7", 7),
        ("augment.blur_sigma=[0.2, 1.0]", (0.2, 1.0)),
        ("optim.base_lr=1", 1.0),
        ("train.precision=bf16", "bf16"),
        ("name=2024", "2024"),
        ("name=nan", "nan"),
    ],
)
def test_overrides_are_toml_or_bare_strings(config_path: Path, override: str, value: object) -> None:
    config: object = load_config(config_path, [override])
    for key in override.partition("=")[0].split("."):
        config = getattr(config, key)
    assert config == value


def test_steps_and_epochs_replace_each_other_on_the_command_line(config_path: Path) -> None:
    train = load_config(config_path, ["train.steps=7"]).train
    assert (train.steps, train.epochs) == (7, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("clips.num_clip=2", "unknown key 'clips.num_clip' (did you mean 'clips.num_clips'?)"),
        ("trian.steps=2", "unknown key 'trian' (did you mean 'train'?)"),
        ("clips.num_clips=0", "clips.num_clips=0: must be at least 1"),
        ("clips.num_clips='2'", "clips.num_clips='2': must be an integer"),
        ("clips.num_clips=2.0", "clips.num_clips=2.0: must be an integer"),
        ("augment.area=[0.9, 0.3]", ": augment.area=[0.9, 0.3] must satisfy 0 < low <= high."),
        ("augment.crop=whole", "augment.crop='whole': must be 'area', 'short_side' or 'center'"),
        ("train.batch_size", "not of the form key.path=value"),
        ("data.train=", "data.train.0.shards='': must have at least 1 character"),
        ("data.train=3", "data.train=3: must be a list"),
        ("data.train=[{shard='a'}]", "unknown key 'data.train.0.shard' (did you mean 'data.train.0.shards'?)"),
        ("data.test={shards='a', weight=2}", "unknown key 'data.test.weight' (known keys: keep, shards)"),
        ("data.train={shards='a', keep='s3://b/k.txt'}", "must be a path on this machine, not an address"),
        ("data.train=[{weight=1}]", "key 'data.train.0.shards' is missing"),
        ("data.train=[{shards='a', weight=0}]", "data.train.0.weight=0: must be greater than 0"),
        ("data.train=['a', 'b', 'a']", "data.train lists 'a' twice. List it once, with a larger weight."),
        ("data.block_shards=0", "data.block_shards=0: must be at least 1"),
        ("data.fixed_lanes=true", ": data.fixed_lanes=true requires data.lanes > 1 (got 1)."),
        ("data.cache_gb=0", "data.cache_gb=0: must be greater than 0"),
        ("name.x=1", "'name' is a value, not a section"),
    ],
)
def test_an_error_is_one_line(config_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_path, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_needs_one_length(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n[train]\nsteps = 3\nepochs = 2\n')
    with pytest.raises(ConfigError, match=r"exactly one of train.epochs and train.steps"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = ", "x.toml: "),
        (b'name = "a"\nname = "b"\n', "overwrite"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"seed = 3", "key 'name' is missing"),
    ],
)
def test_a_broken_file_is_a_config_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("override", "dumped"),
    [
        ("data.train=s3://bucket/x", "s3://bucket/x"),
        ("data.train=[{shards='x', weight=2}]", [{"shards": "x", "weight": 2.0}]),
        ("data.train=['x', 'y']", [{"shards": "x", "weight": 1.0}, {"shards": "y", "weight": 1.0}]),
    ],
)
def test_a_configuration_survives_json(config_path: Path, override: str, dumped: object) -> None:
    config = load_config(config_path, [override, "train.max_hours=1.5"])
    assert parse_config(dump_config(config), where="json") == config
    assert dump_config(config)["data"]["train"] == dumped


CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.toml") if path.parent.name != "eval")
NAMES = [str(path.relative_to(ROOT)) for path in CONFIGS]


def overrides_of(path: Path) -> list[list[str]]:
    """Return the lines with `--set` in a config's head, each as a list of overrides."""
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    given = [re.findall(r"--set ('[^']*'|\S+)", line) for line in comments]
    return [[word.strip("'") for word in words] for words in given if words]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_config_states_its_source_and_its_command(path: Path) -> None:
    head = path.read_text().partition("\nname =")[0]
    assert load_config(path).name == path.stem
    assert f"rhofast train {path.relative_to(ROOT)}" in head
    entries = ["Source", "Command", "Hardware"]
    entries += [] if path.stem == "demo" else ["Expected", "Not yet run here"]
    assert [entry for entry in entries if entry in head] == entries


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_every_command_in_a_config_s_head_can_start(path: Path) -> None:
    lines = overrides_of(path)
    assert lines
    for overrides in lines:
        config = load_config(path, overrides)
        with torch.device("meta"):  # the sizes of everything, at no cost
            chosen = config.backbone
            backbone = build_backbone(
                chosen.name, chosen.options, num_frames=config.clips.num_frames, size=config.augment.size
            )
            method = build_method(config.method.name, config.method.options, backbone)
        method.check(max(2, config.clips.num_clips), config.train.batch_size)
    names = [override for overrides in lines for override in overrides if override.startswith("name=")]
    assert len(names) == len(set(names))


RELEASED = {
    "byol_slow_r50_8x8_rho2": "BYOL_SlowR50_8x8.yaml NUM_SHARDS=8",
    "moco_slow_r50_8x8_rho4": "MoCo_SlowR50_8x8.yaml NUM_SHARDS=8",
    "simclr_slow_r50_8x8_rho4": "SimCLR_SlowR50_8x8.yaml NUM_SHARDS=8",
    "swav_slow_r50_8x8_rho2": "SwAV_Slow_R50_8x8.yaml NUM_SHARDS=8",
}


@needs_vectors
@pytest.mark.parametrize(("name", "released"), RELEASED.items())
def test_a_config_has_the_rates_of_the_released_configuration_of_its_name(name: str, released: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.toml")
    expected = numbers("schedules")[released]
    assert config.train.epochs == expected["max_epoch"]
    for epoch, rate in zip(expected["epochs"], expected["lr"], strict=True):
        assert learning_rate(config.optim, config.train.batch_size, epoch, 200) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "peak", "decay", "clips"),
    [
        ("moco_slow_r50_8x8_rho2", 0.4, 1e-4, (2, 8, 8)),
        ("moco_slow_r50_8x8_rho4", 0.8, 1e-4, (4, 8, 8)),
        ("byol_slow_r50_8x8_rho2", 4.8, 1e-6, (2, 8, 8)),
        ("byol_slow_r50_8x8_rho4", 9.6, 1e-6, (4, 8, 8)),
        ("byol_slow_r50_16x4_rho4", 9.6, 1e-6, (4, 16, 4)),
        ("simclr_slow_r50_8x8_rho2", 4.8, 1e-6, (2, 8, 8)),
        ("simclr_slow_r50_8x8_rho4", 9.6, 1e-6, (4, 8, 8)),
        ("swav_slow_r50_8x8_rho2", 4.8, 1e-6, (2, 8, 8)),
    ],
)
def test_the_config_of_a_released_run_has_its_published_numbers(
    name: str, peak: float, decay: float, clips: tuple[int, int, int]
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.toml")
    optim, batch = config.optim, config.train.batch_size
    no_warmup = optim.model_copy(update={"warmup_epochs": 0.0})
    assert learning_rate(no_warmup, batch, 0, 200) == pytest.approx(peak)
    assert learning_rate(optim, batch, 0, 200) == pytest.approx(0.008)
    assert (config.clips.num_clips, config.clips.num_frames, config.clips.frame_stride) == clips
    assert (batch, config.train.epochs, optim.weight_decay, optim.momentum) == (512, 200, decay, 0.9)
    assert optim.nesterov and optim.warmup_epochs == 35 and config.backbone.name == "slow_r50"
    assert (optim.name, config.train.precision) == (
        ("sgd", "fp16") if config.method.name == "moco" else ("lars", "fp32")
    )
    published = {  # what the config leaves to the defaults
        "moco": {"ema_base": 0.994, "queue": 65536, "out": 128, "temperature": 0.1, "projector_norm": False},
        "byol": {"ema_base": 0.996, "hidden": 4096, "out": 256, "temperature": 0.5, "projector_norm": True},
        "simclr": {"projector_layers": 3, "temperature": 0.1, "projector_norm": False, "pairs": "chain"},
        "swav": {"prototypes": 1000, "sinkhorn_steps": 3, "sharpness": 0.05, "frozen_epochs": 1.0},
    }[config.method.name]
    options = parse_section(METHODS[config.method.name][0], config.method.options, where="method").model_dump()
    assert {key: options[key] for key in published} == published
    if config.method.name == "moco":
        assert options["queue"] // batch == 128  # steps that only fill the queue
    assert config.augment == AugmentConfig()  # the defaults are the release's


def test_every_config_has_its_row_in_the_documentation() -> None:
    text = (ROOT / "docs" / "reproducing.md").read_text()
    assert [name for name in NAMES if f"({name})" not in text.replace("(../", "(")] == []

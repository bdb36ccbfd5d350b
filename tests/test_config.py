"""A page is read strictly, and what is wrong is said in one line."""

from pathlib import Path

import pytest

from rhofast.config import Config, dump_config, load_config, parse_config
from rhofast.errors import ConfigError

PAGE = """
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
def page(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(PAGE)
    return path


def test_a_page_is_read_with_its_defaults(page: Path) -> None:
    config = load_config(page)
    assert (config.clips.num_clips, config.clips.num_frames) == (3, 8)
    assert config.augment.area == (0.3, 0.9)
    assert (config.method.name, config.method.options) == ("byol", {"hidden": 512})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("clips.num_frames=16", 16),
        ("data.train=some/folder", Path("some/folder")),
        ("train.steps=7", 7),
        ("augment.blur_sigma=[0.2, 1.0]", (0.2, 1.0)),
        ("optim.base_lr=1", 1.0),
        ("train.precision=bf16", "bf16"),
    ],
)
def test_overrides_are_toml_or_bare_strings(page: Path, override: str, value: object) -> None:
    config: object = load_config(page, [override])
    for key in override.partition("=")[0].split("."):
        config = getattr(config, key)
    assert config == value


def test_steps_and_epochs_replace_each_other_on_the_command_line(page: Path) -> None:
    train = load_config(page, ["train.steps=7"]).train
    assert (train.steps, train.epochs) == (7, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("clips.num_clip=2", "unknown key 'clips.num_clip' (did you mean 'num_clips'?)"),
        ("trian.steps=2", "unknown key 'trian' (did you mean 'train'?)"),
        ("clips.num_clips=0", "clips.num_clips = 0: input should be greater than or equal to 1"),
        ("clips.num_clips='2'", "clips.num_clips = '2': input should be a valid integer"),
        ("clips.num_clips=2.0", "clips.num_clips = 2.0: input should be a valid integer"),
        ("augment.area=[0.9, 0.3]", "augment: area must be [low, high] with 0 < low <= high, got [0.9, 0.3]"),
        ("augment.crop=center", "augment.crop = 'center': input should be 'area' or 'short_side'"),
        ("train.batch_size", "not of the form key.path=value"),
        ("name.x=1", "'name' is a value, not a section"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(page: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(page, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_needs_one_length(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n[train]\nsteps = 3\nepochs = 2\n')
    with pytest.raises(ConfigError, match="exactly one of epochs and steps"):
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
def test_a_broken_page_is_a_config_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_a_missing_page_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_a_configuration_survives_json(page: Path) -> None:
    config = load_config(page, ["data.train=x", "train.max_hours=1.5"])
    assert parse_config(dump_config(config), where="json") == config


def test_every_page_in_configs_is_valid() -> None:
    pages = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert pages
    for page in pages:
        assert isinstance(load_config(page), Config)
        assert load_config(page).name == page.stem

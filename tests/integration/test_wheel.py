"""The wheel is whole: what a user installs works from any folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable

import pytest

from tests.helpers.shards import ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def rhofast(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program of a fresh environment in which the wheel is installed, run in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    venv.create(folder / "venv", symlinks=True, with_pip=True)
    python = folder / "venv" / "bin" / "python"
    [wheel] = (folder / "dist").glob("*.whl")
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies are those of the environment that runs the tests. A .pth file appends their folder, and does not
    # follow the .pth files within it: the checkout stays out.
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    outside = folder / "outside"
    outside.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "venv" / "bin" / "rhofast"), *arguments]
        return subprocess.run(
            command, cwd=outside, env={**environment, "COLUMNS": "200"}, capture_output=True, text=True, check=False
        )

    return run


def test_the_program_knows_its_version(rhofast: Run) -> None:
    done = rhofast("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "rhofast"), done.stderr


def test_recipes_and_configs_come_along(rhofast: Run) -> None:
    recipes, configs = rhofast("recipes"), rhofast("configs", "list")
    assert recipes.returncode == configs.returncode == 0, recipes.stderr + configs.stderr
    assert len(recipes.stdout.splitlines()) == len(list((ROOT / "shards").glob("[!_]*.py")))
    names = {line.split()[0] for line in configs.stdout.splitlines()}
    paths = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.toml")}
    assert names == {str(path.with_suffix("")) for path in paths}


def test_a_config_is_shown_and_copied_once(rhofast: Run) -> None:
    shown, copied, again = (
        rhofast("configs", "show", "demo"),
        rhofast("configs", "copy", "demo"),
        rhofast("configs", "copy", "demo"),
    )
    assert shown.stdout == (ROOT / "configs" / "demo.toml").read_text()
    assert (copied.returncode, again.returncode) == (0, 2) and "demo.toml: the file exists" in again.stderr


def test_training_finds_a_config_by_its_name(rhofast: Run) -> None:
    for name in ("demo", "byol_slow_r50_8x8_rho2", "byol_slow_r50_8x8_rho2.toml"):
        done = rhofast("train", name)
        assert done.returncode == 2 and "data.train is not set" in done.stderr
    done = rhofast("train", "byol_slow_r50_8x8_rho3")
    assert done.returncode == 2 and "did you mean 'byol_slow_r50_8x8_rho" in done.stderr


def test_the_demo_begins_outside_a_checkout(rhofast: Run) -> None:
    done = rhofast("demo", "--out", "demo", "--videos", "nowhere")
    assert done.returncode == 2 and "nowhere: not a folder" in done.stderr
    assert "$ rhofast shard nowhere" in done.stdout

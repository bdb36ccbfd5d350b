"""`rhofast bench`: what is measured, how ranks and rounds become one report, and that nothing is left behind."""

import json
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import rhofast.analysis.bench
from rhofast.analysis.bench import bench
from rhofast.analysis.bench_report import Measurement, draw, summarize
from rhofast.cli.app import main
from rhofast.cli.tables import bench_table
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.threaded_pipeline import StageClock
from rhofast.errors import ConfigError
from tests.helpers.shards import TINY_PAGE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config(shards: ShardSet, tmp_path: Path) -> Config:
    config_file = tmp_path / "tiny.toml"
    config_file.write_text(TINY_PAGE)
    return load_config(config_file, [f"data.train={shards.root}", f"out={tmp_path / 'runs'}", "data.prefetch=1"])


def text_of(report: dict[str, Any]) -> str:
    console = Console(width=200, file=StringIO())
    console.print(bench_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["loader", "step", "both", "headspace"])
def test_each_measurement_reports_its_sources(
    what: rhofast.analysis.bench.What, config: Config, tmp_path: Path
) -> None:
    reported: list[tuple[int, int]] = []
    report = bench(config, what, batches=2, rounds=2, on_measurement=lambda done, total: reported.append((done, total)))
    assert json.loads(json.dumps(report)) == report
    sources = {"step": ["memory"], "headspace": ["loader", "memory"]}.get(what, ["loader"])
    assert list(report["summary"]) == sources
    assert reported[-1] == (2 * len(sources), 2 * len(sources))
    for numbers in report["summary"].values():
        assert 0 < numbers["clips_per_second"]["lowest"] <= numbers["clips_per_second"]["median"]
        assert numbers["frames_per_second"]["median"] == pytest.approx(2 * numbers["clips_per_second"]["median"])
        assert 0 <= numbers["data_wait_share"]["median"] <= 1
        assert "data_wait_share" in numbers and "host_blocked_share" in numbers
    assert ("headspace" in report) == (what == "headspace")
    assert ("advice" in report) == ("stages" in report) == ("loader" in sources)
    assert not (tmp_path / "runs").exists()  # it is no run

    text = text_of(report)
    assert f"bench {what}" in text and "clips/s" in text and "Medians and ranges of 2 rounds of 2 batches" in text
    assert ("Headspace: " in text) == (what == "headspace") and ("Advice: " in text) == ("loader" in sources)
    draw(report, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.width > 700


def test_sources_alternate_in_changing_order(config: Config) -> None:
    report = bench(config, "headspace", batches=1, rounds=3)
    order = [one["source"] for one in report["measurements"]]
    assert order == ["loader", "memory", "memory", "loader", "loader", "memory"]


def test_a_slow_loader_is_found_and_its_cost_measured(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader.read

    def slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.25)
        return read(*arguments, **named)

    monkeypatch.setattr(Reader, "read", slowly)  # four samples by four threads: 0.25 s a batch
    monkeypatch.setattr(rhofast.analysis.bench, "train_step", lambda *_, **__: time.sleep(0.02) or {})
    report = bench(config, "headspace", batches=3, rounds=2)
    assert report["headspace"]["median"] > 2  # about 12 where nothing else runs: no stock is lived on
    waits = {name: one["data_wait_share"]["median"] for name, one in report["summary"].items()}
    assert waits["loader"] > 0.5 > waits["memory"]
    assert "reading is the limit" in report["advice"]


def test_a_slow_step_is_found(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhofast.analysis.bench, "train_step", lambda *_, **__: time.sleep(0.4) or {})
    report = bench(config, "both", batches=2, rounds=2)
    assert report["advice"].startswith("the loader is not the limit")
    assert report["summary"]["loader"]["step_seconds"]["median"] >= 0.4
    assert report["summary"]["loader"]["readiness"]["median"] > 0.9


def test_an_interruption_leaves_no_thread(config: Config) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        bench(config, "both", batches=1, rounds=2, on_measurement=interrupt)
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("rhofast")}


def test_shards_must_be_named(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        bench(load_config(None, []), "loader")


def measurement(
    source: Any = "loader",
    *,
    seconds: float = 2.0,
    wait_s: float = 0.5,
    idle_s: float | None = None,
    advice: str = "a",
) -> Measurement:
    stats = LoaderStats(
        batches=4,
        clips=32,
        frames=256,
        frames_decoded=512,
        bytes_read=6_000_000_000,
        bytes_used=2_000_000_000,
        bad=1,
        seconds=seconds,
        wait_s=wait_s,
        stages={"read": StageClock(1.0, 0.0, 1.0), "decode": StageClock(seconds, 0.0, 0.0)},
    )
    return Measurement(
        source=source,
        batches=4,
        clips=32,
        frames=256,
        seconds=seconds,
        blocked_s=wait_s,
        device_idle_s=idle_s,
        stats=stats if source == "loader" else None,
        advice=advice if source == "loader" else None,
        loader_idle=True,
    )


def test_ranks_add_up_and_the_slowest_one_counts() -> None:
    numbers = summarize([[measurement()], [measurement(seconds=4, wait_s=3)]])["measurements"][0]["numbers"]
    assert numbers["clips_per_second"] == 64 / 4 and numbers["step_seconds"] == 1
    assert numbers["data_wait_share"] == 0.75 and numbers["readiness"] == 0.25
    assert numbers["host_blocked_share"] == 0.75
    assert numbers["gigabytes_per_second"] == 3 and numbers["bad_samples"] == 2
    assert numbers["read_amplification"] == 3 and numbers["decode_amplification"] == 2


def test_rounds_become_medians_with_their_range() -> None:
    out = summarize([[measurement(seconds=s, wait_s=w, advice=f"wait {w}") for s, w in ((2, 0.2), (4, 3), (8, 3.2))]])
    assert out["summary"]["loader"]["step_seconds"] == {"median": 1, "lowest": 0.5, "highest": 2}
    assert out["stages"]["read"] == {"busy": 0.5, "starved": 0, "blocked": 0.5}
    assert out["advice"] == "wait 3.2"  # shares 10 %, 75 % and 40 %
    assert "headspace" not in out


def test_headspace_compares_measurements_of_one_round() -> None:
    fed, memory = [measurement(seconds=s) for s in (2, 3, 8)], [measurement("memory", seconds=s) for s in (1, 2, 2)]
    order = [fed[0], memory[0], memory[1], fed[1], fed[2], memory[2]]
    assert summarize([order])["headspace"] == {"median": 2, "lowest": 1.5, "highest": 4}


def test_a_ready_loader_that_slows_the_step_is_reported() -> None:
    fed = measurement(seconds=4, wait_s=0, advice="the loader is not the limit")
    memory = measurement("memory", seconds=2)
    text = summarize([[fed, memory]])["advice"]
    assert text.startswith("the loader is not the limit; a step still takes 2.00 times as long while the loader works")


def test_on_a_device_its_own_idle_time_counts_and_not_the_host_s() -> None:
    fed = measurement(seconds=4, wait_s=3, idle_s=0.02, advice="reading is the limit")
    out = summarize([[fed, measurement("memory", seconds=4, idle_s=0)]])
    numbers = out["measurements"][0]["numbers"]
    assert numbers["data_wait_share"] == 0.005 and numbers["host_blocked_share"] == 0.75
    assert out["advice"] == "the device is the limit: it waits for data 0.5% of the time"
    starved = measurement(seconds=4, wait_s=3, idle_s=1, advice="reading is the limit")
    assert summarize([[starved, measurement("memory", seconds=3, idle_s=0)]])["advice"] == "reading is the limit"


def test_the_command_writes_table_numbers_and_picture(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["rhofast", "bench", *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    config_file, numbers, picture = (tmp_path / name for name in ("tiny.toml", "bench.json", "bench.png"))
    given = [config_file, "--set", f"data.train={shards.root}", "--batches", 1, "--rounds", 1]
    assert run("loader", *given, "--out", numbers, "--plot", picture) == 0
    assert "bench loader" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["what"] == "loader" and picture.stat().st_size > 1000
    assert run("loader", *given, "--plot", tmp_path / "bench.jpg") == 2
    assert "not a .png file" in capsys.readouterr().err
    assert run("everything", *given) == 2

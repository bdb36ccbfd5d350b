"""The report of a run, from the files that the run has written."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

import rhofast.analysis.report_plots
from rhofast.analysis.report import write_report
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.load import dump_config
from rhofast.config.schema import Config, TrainConfig
from rhofast.errors import ConfigError
from rhofast.training.metrics import STEP_PHASES


def step(number: int, **more: Any) -> dict[str, Any]:
    line = {"kind": "step", "step": number, "epoch": number / 10, "loss": -0.1 * number, "lr": 0.1 / number}
    rates = {"clips_per_second": 100.0 + number, "data_wait_share": 0.01, "bad_samples": 2, "feature_std": 0.7}
    return {**line, **rates, "ema_momentum": 0.99, "grad_norm": None, **more}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhofast.analysis.report_plots, "_DPI", 20)


START = {
    "kind": "start",
    "time": "2026-01-01T00:00:00+00:00",
    "step": 0,
    "world_size": 2,
    "device": "a <b> device",
    "parameters": 1_500_000,
    "samples": 1000,
    "versions": {"torch": "2.x"},
}
KNN = {
    "kind": "knn",
    "trained": {
        "measures": {"top-1": 0.75, "top-5": 1.0},
        "samples": 40,
        "per_class": {},
        "confusion": [[15, 5], [5, 15]],
        "chance": {"top-1": 0.525},
    },
    "untrained": {
        "measures": {"top-1": 0.5, "top-5": 1.0},
        "samples": 40,
        "per_class": {},
        "confusion": [[10, 10], [10, 10]],
    },
    "classes": ["left", "right & up"],
}


def whole_step(number: int, **more: Any) -> dict[str, Any]:
    """Return a step line with all metrics."""
    return step(
        number,
        grad_norm=2.0,
        step_seconds=0.25,
        memory_bytes=10**9,
        **{f"{name}_seconds": 0.1 for name in STEP_PHASES},
        **more,
    )


def add_result(run: Path, name: str, result: dict[str, Any]) -> None:
    (run / "results").mkdir(parents=True, exist_ok=True)
    (run / "results" / f"{name}.json").write_text(json.dumps(result))


def make_run(folder: Path, lines: list[dict[str, Any]], tail: str = "", **train: Any) -> Path:
    folder.mkdir(parents=True)
    config = Config(name=folder.name, train=TrainConfig(steps=9, **train))
    (folder / "config.json").write_text(json.dumps(dump_config(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def test_a_whole_run_has_numbers_plots_and_pictures(tmp_path: Path) -> None:
    lines = [START, {"kind": "knn", "step": 0, "top1": 0.5, "top5": 1.0, "samples": 40}, step(1), step(2)]
    run = make_run(tmp_path / "run", lines)
    add_result(run, "knn", KNN)
    Image.new("RGB", (8, 8)).save(run / "clips.png")
    page = write_report([run]).read_text()
    assert (
        "kNN, top-1<td>40 videos<td><td><td class=number>75.0%<td class=number>50.0%<td class=number>52.5%<td>" in page
    )
    for text in ("-0.2000", "waiting for data (median)", "1.50 M parameters"):
        assert text in page, text
    assert page.count("<img") == 8
    assert "a &lt;b&gt; device" in page and "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "run", [START])]).read_text()
    assert "No steps logged yet" in page and "<img" not in page
    page = write_report([make_run(tmp_path / "two", [START, step(1)])]).read_text()
    assert "kNN" not in page and "<h2>Evaluations" not in page and page.count("<img") == 5


def test_the_later_line_of_a_step_counts_and_a_cut_line_is_ignored(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        [START, step(1), step(2, loss=-9.0), {**START, "step": 1}, step(2, loss=-1.5)],
        tail='{"kind": "st',
    )
    assert len(read_metrics(run / "metrics.jsonl")) == 5
    page = write_report([run]).read_text()
    assert "-1.5000" in page and "-9.0000" not in page and "resumed once" in page


def test_lines_in_the_middle_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [START, step(1), step(2)], tail='{"kind": "st')
    path = run / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, '{"kind": "step", "st', others[0], '"x", "step": 3}', "[3]", *others[1:]]))
    lines = read_metrics(path)
    assert [line["kind"] for line in lines] == ["start", "warning", "step", "step"]
    assert lines[1]["text"] == "metrics.jsonl: 3 of its lines cannot be read and are passed over: 2, 4, 5"
    assert lines[1]["text"] in write_report([run]).read_text()


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([START], "no step yet"),
        ([START, step(4)], "at step 4 of 9 (running, or killed)"),
        ([START, step(9)], "finished"),
        ([START, step(9), {**START, "step": 9}], "finished"),
        (
            [START, step(4), {"kind": "stop", "step": 5, "reason": "SIGTERM"}],
            "stopped at step 5 (SIGTERM); can be",
        ),
        ([START, {"kind": "stop", "step": 5, "reason": "SIGTERM"}, {**START, "step": 5}, step(6)], "at step 6 of 9"),
        ([START, step(4), {"kind": "error", "step": 5, "text": "a loss"}], "failed at step 5"),
    ],
)
def test_the_state_of_a_run_is_reported(tmp_path: Path, lines: list[dict[str, Any]], state: str) -> None:
    assert f"<td>state<td class=number>{state}" in write_report([make_run(tmp_path / "run", lines)]).read_text()


def test_every_run_is_in_the_legend_whatever_its_name(tmp_path: Path) -> None:
    names = [*(f"run{number}" for number in range(11)), "_hidden", "$x_1$ & <b>", "long" * 30]
    runs = [make_run(tmp_path / name, [START, whole_step(1)]) for name in names[:11]]
    for name in names[11:]:
        shutil.copytree(runs[0], tmp_path / name)
        runs.append(tmp_path / name)
    legend = write_report([*runs, runs[0]]).read_text().split("class=legend>")[1].split("</div>")[0]
    assert legend.count("<span>") == len(runs)
    assert len(set(re.findall("style='(.*?)'", legend))) == len(runs)  # each has a style of its own
    assert "_hidden" in legend and "$x_1$ &amp; &lt;b&gt;" in legend and "long" * 30 in legend


def test_a_loss_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    assert "not finite" in write_report([make_run(tmp_path / "run", [START, step(1), step(2, loss=None)])]).read_text()


def test_a_folder_that_is_no_run_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report([tmp_path])


def test_a_run_with_all_metrics_has_more_plots_and_its_messages(tmp_path: Path) -> None:
    said = {"kind": "warning", "step": 2, "text": "the embeddings <collapse>"}
    run = make_run(tmp_path / "run", [{**START, "decoders": ["jpeg on the host"]}, whole_step(1), whole_step(2), said])
    page = write_report([run]).read_text()
    assert "time per step (median)<td class=number>250.0 ms" in page
    assert page.count("<img") == 8  # three more: phases, gradients, memory
    assert "the embeddings &lt;collapse&gt;" in page and "jpeg on the host" in page


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", [START, whole_step(1), whole_step(2)])
    second = make_run(tmp_path / "second", [START, step(1), step(2, loss=-7.0)], batch_size=64, precision="bf16")
    add_result(first, "knn", KNN)
    path = write_report([first, second])
    assert path == tmp_path / "comparison.html"
    page = path.read_text()
    assert "<h1>first, second</h1>" in page and "-0.2000<td class=number>-7.0000" in page
    differences = page.split("Differences between the configurations")[1].split("<h2>")[0]
    assert "<td>train.batch_size<td class=number>512<td class=number>64" in differences
    assert "<td>train.precision<td class=number>fp32<td class=number>bf16" in differences
    assert differences.count("<tr>") == 3  # a heading and two keys; the name is none
    assert page.count("<img") == 9 and "http" not in page.replace("http-equiv", "")
    assert "<td>first<td>kNN, top-1" in page and "Loss over steps" in page


def test_all_evaluations_of_a_run_are_one_table_with_sets_protocols_and_published_values(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [START, step(1)])
    knn = {**KNN, "shards": {"test": {"name": "ucf101", "samples": 40}}, "settings": {"views": 2, "temperature": 0.1}}
    linear = {
        **{key: value for key, value in knn.items() if key != "untrained"},
        "kind": "linear",
        "origin": "a test",
        "trained": {"measures": {"top-1": 0.8}, "samples": 40},
        "settings": {"penalty": 0.001, "sweep": [{"penalty": 1.0}], "test_views": 10},
        "published": [
            {"measure": "top-1", "value": 0.71, "of": "MoCo, <rho> = 4"},
            {"measure": "top-1", "value": 0.701},
            {"measure": "top-5", "value": 0.9},
        ],
    }
    add_result(run / "evals" / "probe", "linear", linear)
    (run / "evals" / "probe" / "task.json").write_text("{}")
    sets = {
        "test": {"name": "hmdb51", "split": "test", "samples": 41, "of": 153},
        "train": {"name": "hmdb51", "split": "train", "samples": 300, "of": 300},
    }
    tuned = {**linear, "kind": "finetune", "chosen": {"penalty": 0.25, "sweep": []}, "settings": {}, "published": []}
    add_result(run / "evals" / "tuned", "finetune", {**tuned, "step": 0})
    for number, (done, where) in enumerate([(9, knn["shards"]), (4, knn["shards"]), (4, sets)]):
        add_result(run, f"knn-{number}", {**knn, "step": done, "shards": where, "untrained": None})
    add_result(run, "knn", knn)
    page = write_report([run]).read_text()
    table = page.split("<h2>Evaluations</h2>")[1].split("</table>")[0]
    rows = [re.split(r"<td[^>]*>", row)[1:] for row in table.split("<tr>")[2:]]
    protocol = "views 2, temperature 0.1"
    published = "71.0% (MoCo, &lt;rho&gt; = 4), 70.1%"
    hmdb51, ucf101 = "hmdb51 test, 40 of 153 videos; training: hmdb51 train, 300 videos", "ucf101, 40 videos"
    found = [(hmdb51, "step 4", False), (ucf101, "", True), (ucf101, "step 4", False), (ucf101, "step 9", False)]
    knn_rows = []
    for where, weights, compared in found:
        knn_rows.append(["kNN, top-1", where, weights, protocol, "75.0%", "50.0%" if compared else "", "52.5%", ""])
        knn_rows.append(["kNN, top-5", "", "", "", "100.0%", "100.0%" if compared else "", "", ""])
    assert rows == [
        *knn_rows,
        ["linear probe, top-1", ucf101, "a test (probe)", "penalty 0.001, test views 10", "80.0%", "", "", published],
        ["fine-tuning, top-1", ucf101, "fine-tuned from untrained (tuned)", "penalty 0.25", "80.0%", "", "", ""],
    ]
    add_result(run, "knn-other", {**knn, "kind": "none"})
    with pytest.raises(ConfigError, match=r"knn-other\.json.*kind='none' must be one of knn"):
        write_report([run])


def test_weights_from_elsewhere_have_a_page_of_their_results_also_beside_runs(tmp_path: Path) -> None:
    add_result(tmp_path / "r3d_18", "knn", {**KNN, "origin": "torchvision", "step": None})
    page = write_report([tmp_path / "r3d_18"]).read_text()
    assert "<td>kNN, top-1<td>40 videos<td>torchvision<td>" in page and "Confusion matrix" in page
    assert "<h2>Results" not in page and "<h2>The run" not in page and "Configuration" not in page
    run = make_run(tmp_path / "run", [START, step(1)])
    page = write_report([tmp_path / "r3d_18", run]).read_text()
    assert "<td>r3d_18<td>kNN, top-1" in page and "<h3>run</h3>" in page and "<h3>r3d_18</h3>" not in page


def test_runs_whose_steps_differ_in_size_are_compared_by_epochs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "small", [START, step(1), step(2), {"kind": "knn", "step": 2, "top1": 0.5}]),
        make_run(tmp_path / "large", [START, step(1, epoch=0.4), step(2, epoch=0.8)]),
    ]
    page = write_report(runs).read_text()
    assert "Loss over epochs" in page and "kNN accuracy over epochs" in page and "over steps" not in page


def test_steps_after_the_checkpoint_from_which_a_run_resumed_are_discarded(tmp_path: Path) -> None:
    lines = [START, *(step(number) for number in range(1, 6)), {**START, "step": 2}, step(3, loss=-0.333)]
    page = write_report([make_run(tmp_path / "run", lines)]).read_text()
    assert "3 (0.3 epochs)" in page and "-0.3330" in page


def test_runs_with_the_same_name_are_distinguished_and_the_target_is_used(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", [START, step(1)]) for folder in "ab"]
    page = write_report(runs, tmp_path / "out.html").read_text()
    assert f"<h3>{runs[0]}</h3>" in page and f"<h3>{runs[1]}</h3>" in page and "configurations are the same." in page


def test_a_long_run_and_one_that_has_not_begun_are_drawn(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", [START, *(whole_step(number) for number in range(1, 500))])
    page = write_report([long, make_run(tmp_path / "new", [START])]).read_text()
    assert page.count("<img") == 8


def test_the_line_of_collapse_says_what_it_is() -> None:
    axes = Figure().add_subplot()
    rhofast.analysis.report_plots._std_axis(axes)
    legend = axes.get_legend()
    assert legend is not None and "collapsed" in legend.get_texts()[0].get_text()


def test_facts_of_a_run_bring_no_markup_into_the_page(tmp_path: Path) -> None:
    evil = "&rho; <script>alert(1)</script>' onload='x"
    start = {**START, "device": evil, "time": evil, "versions": {evil: evil}, "decoders": [evil]}
    lines = [start, step(1), {"kind": "warning", "step": 1, "text": evil}]
    run = make_run(tmp_path / "run", lines).rename(tmp_path / "<b>run\x1b[31m")
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "<script" not in text and "<b>" not in text and "onload='x" not in text and "\x1b" not in text
    assert "&amp;rho; &lt;script&gt;" in text and "\u03c1 = " in text


def test_a_picture_of_a_stranger_s_run_is_limited(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [START, step(1)])
    (run / "clips.png").touch()
    os.truncate(run / "clips.png", 1 << 33)
    with pytest.raises(ConfigError, match=r"clips\.png: larger than"):
        write_report([run])

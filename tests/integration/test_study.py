"""The study's runs are runs that can be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.study import one, study
from benchmarks.study.keep_cost import summarize
from benchmarks.study.one import RESULT, run_digest
from benchmarks.study.questions import SETS, Run, all_runs, questions
from benchmarks.study.study import command_of
from benchmarks.study.tables import gains, table, untrained_line
from benchmarks.training.step_vs_plain import Contender
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.errors import EXIT_RESUMABLE
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.training.trainer import Outcome


def configurations() -> dict[str, Config]:
    """Of each run, by name, as its command line says."""

    found = {}
    for run in all_runs(questions()):
        words = command_of(run, Path("work"), Path("shards"), "test")
        sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        found[run.name] = load_config(study.CONFIGS[run.network], sets)
    return found


def test_every_run_has_a_page_of_its_own_that_is_valid() -> None:
    pages = configurations()
    assert len({page.model_dump_json() for page in pages.values()}) == len(pages)
    for method in ("moco", "byol", "simclr", "swav", "moco_v3", "lejepa"):
        assert {(page.clips.num_clips, page.seed) for page in pages.values() if page.method.name == method} >= {
            (rho, seed) for rho in (1, 2, 3, 4) for seed in (0, 1, 2)
        }
    networks = {(page.method.model_dump_json(), page.backbone.model_dump_json()): page for page in pages.values()}
    for page in networks.values():
        build_method(page.method.name, page.method.options, build_backbone(page.backbone.name, page.backbone.options))


def test_a_run_that_was_made_with_other_settings_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    run, moved = Run(method="swav"), tmp_path / "elsewhere"
    result = tmp_path / run.name / RESULT
    result.parent.mkdir()
    result.write_text(json.dumps({"digest": run_digest(study.CONFIGS[run.network], study.settings_of(run, tmp_path))}))
    assert study.do(run, tmp_path, moved, "test", 1) is None
    monkeypatch.setitem(study.METHOD_OPTIONS["swav"], "method.prototypes", 3)
    assert "move it away" in str(study.do(run, tmp_path, moved, "test", 1))


def test_a_run_that_was_stopped_early_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Outcome(run=tmp_path / "run", step=3, steps=320, finished=False)
    monkeypatch.setattr(one, "train", lambda config, resume: stopped)
    words = command_of(Run(), tmp_path, tmp_path / "shards", "test")
    monkeypatch.setattr(sys, "argv", words[words.index("benchmarks.study.one") :])
    with pytest.raises(SystemExit) as ended:
        one.main()
    assert ended.value.code == EXIT_RESUMABLE and not list(tmp_path.rglob(RESULT))


def test_no_set_shares_its_videos_with_another() -> None:

    assert len({(made["split"], made["seed"]) for made in SETS.values()}) == len(SETS)


def test_a_table_has_means_and_spreads_of_what_is_done() -> None:

    rho = questions()[0]
    results = {}
    for clips, accuracies in {1: (0.4, 0.5, 0.6), 2: (0.7, 0.8, 0.9), 4: (0.5,)}.items():
        base = rho.cells["SimCLR", str(clips)]
        for seed, top1 in enumerate(accuracies):
            name = Run(method=base.method, changes=base.changes, data=base.data, seed=seed).name
            results[name] = {"knn": {"top1": top1}, "linear": {"top1": top1}}
    lines = table(rho, results, "knn", 3)
    assert "| SimCLR | 50.0 ± 10.0 | 80.0 ± 10.0 |  | 50.0 |" in lines and "| BYOL |  |  |  |  |" in lines
    above = gains(rho, results, "knn", 3)
    assert "| SimCLR | +30.0 (spread 14.1) |  |  |" in above and "| BYOL |  |  |  |" in above


def test_each_network_is_compared_with_its_own_untrained_one() -> None:
    accuracies = {"byol_seed-0": 0.25, "byol_seed-1": 0.75, "vit_lejepa_seed-0": 0.125, "vit_byol_seed-0": None}
    results = {
        name: {measure: {"untrained_top1": top1, "chance": 0.125, "samples": 8} for measure in ("knn", "linear")}
        for name, top1 in accuracies.items()
    }
    assert {run.name for run in all_runs(questions(), 2) if run.evaluates_untrained} == {
        "byol_seed-0",
        "byol_seed-1",
        "vit_lejepa_seed-0",
        "vit_lejepa_seed-1",
    }
    slow, vit, *_ = untrained_line(results).split(". ")
    assert slow == "Slow-R18, untrained: kNN 50.0 ± 35.4, linear probe 50.0 ± 35.4"
    assert vit == "Tiny vit, untrained: kNN 12.5, linear probe 12.5"


def test_savings_are_ratios_of_steps_of_one_round() -> None:
    full, half = (Contender(name=name, step=torch.Tensor, model=torch.nn.Identity()) for name in ("100%", "50%"))
    full.seconds, half.seconds = [2.0, 4.0, 8.0], [1.0, 3.0, 2.0]  # the machine gets slower
    full.cpu, half.cpu = [1.0, 1.0, 1.0], [0.5, 0.25, 0.5]
    full.peak, half.peak = 400, 300
    first, second = summarize([full, half])
    assert (first["of_full"], first["cpu_of_full"], first["peak_of_full"]) == (1, 1, 1)
    assert (second["seconds"], second["of_full"], second["cpu_of_full"], second["peak_of_full"]) == (2, 0.5, 0.5, 0.75)

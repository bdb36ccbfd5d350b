"""Results and reports that may come from elsewhere: of evaluations, benchmarks, dry runs and ingest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rhofast.analysis.capacity.options import PlannerOptions
from rhofast.analysis.capacity.reports import bench_rates, read_dry_run
from rhofast.analysis.report_plots import RunLog
from rhofast.analysis.report_results import results_table
from rhofast.config.load import dump_config, load_config
from rhofast.evaluation.result_file import read_result
from rhofast.ingest.job_result import read_refused
from rhofast.ingest.job_result import read_result as read_job_result
from tests.fuzz.mutations import mutate_json
from tests.helpers.shards import ROOT

Fuzz = Callable[..., None]
CONFIG = load_config(None, ["backbone.name=slow_r18", "backbone.width=2"])
SCORES = {
    "measures": {"top-1": 0.75, "top-5": 1.0},
    "samples": 40,
    "per_class": {"a": 1.0},
    "confusion": [[15, 5], [5, 15]],
    "chance": {"top-1": 0.5},
}
KNN = {
    "kind": "knn",
    "origin": "x",
    "step": 4,
    "folder": "runs/x",
    "classes": ["a", "b"],
    "trained": SCORES,
    "untrained": SCORES,
    "shards": {"test": {"name": "ucf101", "split": "test", "samples": 40, "of": 60}, "train": {"name": "ucf101"}},
    "settings": {"neighbors": 20, "temperature": 0.1},
    "chosen": {"sweep": [1]},
    "notes": [],
    "published": [{"measure": "top-1", "value": 0.5, "of": "x"}],
}
BENCH = {
    "what": "step",
    "config": dump_config(CONFIG),
    "machine": {"device": "H100"},
    "world_size": 2,
    "summary": {"memory": {"clips_per_second": {"median": 600.0, "low": 590.0, "high": 610.0}}},
}
(DRY_RUN, *_) = json.loads((ROOT / "benchmarks" / "results" / "capacity_xeon-2-cores_202611.json").read_text())[
    "dry_runs"
]

REFUSED = {"key": "a", "path": "in/a.mp4", "reason": "damaged", "detail": "frame 3: cut short"}
JOB = {
    "states": [[15496, 1790000000000000000], None, [3, "etag"]],
    "refused": [REFUSED],
    "end": {
        "digest": "0" * 64,
        "shard": {
            "name": "shard-000000",
            "samples": 2,
            "frames": 50,
            "seconds": 2.0,
            "bytes": 20480,
            "index_bytes": 5138,
            "tar_sha256": "0" * 64,
            "index_sha256": "0" * 64,
        },
    },
}


def read_job(path: Path) -> None:
    blocks = list(read_job_result(path))
    assert all(source.line().count("\n") == 1 for block in blocks for source in block.refused)
    assert blocks[-1].end is not None


def read_refused_lines(path: Path) -> None:
    for source in read_refused(path):
        assert source.line().count("\n") == 1


def read_knn(path: Path) -> None:
    result = read_result(path)
    assert result is not None and len(result["trained"].get("confusion") or result["classes"]) == len(result["classes"])
    nothing: dict[str, Any] = {"config": {}, "starts": [], "steps": [], "checks": [], "messages": [], "state": ""}
    log = RunLog(folder=path, name="x", results=[result], **nothing)
    assert "<td" in results_table([log])


def read_bench(path: Path) -> None:
    bench_rates(CONFIG, path, ["jpeg"])


def read_dry(path: Path) -> None:
    report = read_dry_run(path)
    codecs = report.codecs([])
    report.videos(codecs[0], PlannerOptions(gpus=8, codec_options={}))
    for codec in codecs:
        report.costs(codec, seconds=9.0, fps=25.0)
    assert report.short_side >= 1


def spoiled(values: Any) -> Callable[[np.random.Generator, Path], Path]:
    def make(rng: np.random.Generator, folder: Path) -> Path:
        (folder / "file.json").write_bytes(mutate_json(rng, values))
        return folder / "file.json"

    return make


def test_the_result_of_an_evaluation(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(KNN))
    read_knn(tmp_path / "whole.json")
    fuzz("tests.fuzz.test_reports:read_knn", spoiled(KNN), cases=60)


def test_the_report_of_a_benchmark(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(BENCH))
    read_bench(tmp_path / "whole.json")
    fuzz("tests.fuzz.test_reports:read_bench", spoiled(BENCH), cases=60)


def test_the_report_of_a_dry_run(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(DRY_RUN))
    read_dry(tmp_path / "whole.json")
    fuzz("tests.fuzz.test_reports:read_dry", spoiled(DRY_RUN), cases=60)


def test_the_result_of_a_job_of_ingest(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(JOB))
    assert len(list(read_job_result(tmp_path / "whole.json"))) == 1
    fuzz("tests.fuzz.test_reports:read_job", spoiled(JOB), cases=60)


def test_the_list_of_refused_videos(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(REFUSED))
    assert len(list(read_refused(tmp_path / "whole.json"))) == 1
    fuzz("tests.fuzz.test_reports:read_refused_lines", spoiled(REFUSED), cases=60)

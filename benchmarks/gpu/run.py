"""Run the GPU measurements, part by part; each ends within its limit, and a crash ends that part alone.

    python -m benchmarks.gpu.run SETS --out FOLDER [--cpu] [--parts PART ...] [--budget SECONDS]
    python -m benchmarks.gpu.run --list

All parts share one process, because importing everything takes longer than some of them. A part that exceeds its
limit ends the process, as a crash does; the exit code is then 3, and the next start goes on with the part after it.
Parts that have a report are not run again. Exit code 0: all parts have one. Exit code 4: the budget is used up.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu import parts
from benchmarks.gpu.parts import Part
from benchmarks.gpu.scale import FULL, TINY
from benchmarks.gpu.sets import repeat

GO_ON, NO_TIME_LEFT = 3, 4
REHEARSAL_LIMIT_S = 600.0  # of every part on the CPU


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When and for how long a part runs.

    Attributes:
        run: The function that measures.
        estimate_s: What the part is expected to take on a GPU, in seconds.
        limit_s: When the part is given up, in seconds.
        optional: Whether the part runs only if it is named.
    """

    run: Callable[[Part], None]
    estimate_s: int
    limit_s: int
    optional: bool = False


PLANS = {
    "smoke": Plan(run=parts.smoke, estimate_s=25, limit_s=60),
    "headspace_jpeg": Plan(run=parts.headspace_jpeg, estimate_s=60, limit_s=90),
    "headspace_h264": Plan(run=parts.headspace_h264, estimate_s=50, limit_s=90),
    "parity": Plan(run=parts.parity, estimate_s=30, limit_s=60),
    "loader": Plan(run=parts.loader, estimate_s=30, limit_s=60),
    "tests": Plan(run=parts.tests, estimate_s=45, limit_s=90),
    "trace": Plan(run=parts.trace, estimate_s=20, limit_s=45),
    "recovery": Plan(run=parts.recovery, estimate_s=25, limit_s=45),
    "step": Plan(run=parts.step, estimate_s=60, limit_s=120),
    "sessions": Plan(run=parts.sessions, estimate_s=60, limit_s=90, optional=True),
    "sets": Plan(run=parts.sets, estimate_s=45, limit_s=90, optional=True),
    "memory": Plan(run=parts.memory, estimate_s=60, limit_s=90, optional=True),
}


class Report:
    """The report of one part, a JSON file that is written when the part begins and again when it ends."""

    def __init__(self, name: str, out: Path, part: Part) -> None:
        """Create the report of the part `name` in the folder `out`; nothing is written yet."""
        self._path, self._name, self._part = out / f"{name}.json", name, part
        self._began = time.perf_counter()
        self._lock, self._final = threading.Lock(), False

    def write(self, error: str | None, *, final: bool = True) -> None:
        """Write what there is; once the final report is written, it stays.

        Args:
            error: Why the part did not end as it should, or None.
            final: Whether the part is over.
        """
        with self._lock:
            if self._final:
                return
            self._final = final
            content = {
                "part": self._name,
                "ok": error is None and not self._part.failed,
                "error": error,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": time.perf_counter() - self._began,
                "scale": asdict(self._part.scale),
                "lines": list(self._part.lines),
                "results": dict(self._part.results),
            }
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content, default=str) + "\n")
            temporary.replace(self._path)


def run_part(name: str, options: argparse.Namespace) -> bool:
    """Run one part in this process and write its report.

    Args:
        name: Name of the part.
        options: Options of the command line.

    Returns:
        Whether it ended as it should. If the limit is exceeded, the process ends with code GO_ON instead.
    """
    plan = PLANS[name]
    device = torch.device("cpu" if options.cpu else "cuda")
    part = Part(sets=options.out / "sets", out=options.out, scale=TINY if options.cpu else FULL, device=device)
    report, limit = Report(name, options.out, part), REHEARSAL_LIMIT_S if options.cpu else plan.limit_s
    report.write("the process ended within this part: it crashed or was killed", final=False)

    def give_up() -> None:
        report.write(f"more than {limit:g} s")
        os._exit(GO_ON)  # the part may be stuck in a library

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    error = None
    try:
        plan.run(part)
    except Exception as raised:  # noqa: BLE001 - it is recorded, and the other parts run
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    timer.cancel()
    report.write(error)
    return error is None


def summary(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the summary of all parts."""
    yield "# GPU measurements" + (": a rehearsal on the CPU; its numbers are meaningless" if options.cpu else "")
    reports = {name: json.loads(path.read_text()) for name in PLANS if (path := options.out / f"{name}.json").is_file()}
    rated = [line for report in reports.values() for line in report["lines"] if line.startswith(parts.RATINGS)]
    yield "\n## Limits\n"
    yield from (f"- {line}" for line in rated)
    if not rated:
        yield "- none was measured"
    for name, plan in PLANS.items():
        if name not in reports:
            if not plan.optional:
                yield f"\n## {name}: not run"
            continue
        report = reports[name]
        yield f"\n## {name}: {'ok' if report['ok'] else 'NOT OK'}, {report['seconds']:.0f} s\n"
        yield from (f"- {line}" for line in report["lines"] if not line.startswith(parts.RATINGS))
        if report["error"]:
            yield f"- error: {report['error']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sets", type=Path, nargs="?", help="folder that benchmarks.gpu.sets made")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of the reports")
    parser.add_argument("--cpu", action="store_true", help="rehearse at a small scale, without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PLANS, help="only these parts; also the optional ones")
    parser.add_argument("--budget", type=float, default=840.0, help="begin no part that may end later, in seconds")
    parser.add_argument("--list", action="store_true", help="print the parts with estimates and limits")
    parser.add_argument("--summary", action="store_true", help="write the summary of the reports that there are")
    options = parser.parse_args()
    if options.list:
        for name, plan in PLANS.items():
            print(f"{name:<16}{plan.estimate_s:>4} s, at most {plan.limit_s} s{', optional' * plan.optional}")
        print(f"together {sum(plan.estimate_s for plan in PLANS.values() if not plan.optional)} s")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.summary:
        text = "\n".join(summary(options)) + "\n"
        (options.out / "summary.md").write_text(text)
        print(text)
        return
    if options.sets is None:
        parser.error("SETS is required")
    raise SystemExit(run_all(options))


def run_all(options: argparse.Namespace) -> int:
    """Run the parts that have no report yet; return the exit code."""
    began = time.monotonic()
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found; --cpu rehearses without one")
    scale = TINY if options.cpu else FULL
    if not (options.out / "sets").is_dir():
        for folder in sorted(path for path in options.sets.iterdir() if (path / "dataset.json").is_file()):
            repeat(folder, options.out / "sets" / folder.name, scale.samples)
    for name, plan in PLANS.items():
        if plan.optional if options.parts is None else name not in options.parts:
            continue
        if (options.out / f"{name}.json").exists():
            continue
        if time.monotonic() - began + plan.estimate_s > options.budget:
            print(f"{name}: no time left", flush=True)
            return NO_TIME_LEFT
        print(f"== {name}", flush=True)
        if not run_part(name, options) and name == "smoke":
            print("stopped: nothing else can work", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    main()

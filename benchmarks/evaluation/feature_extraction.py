"""Compare the speed of feature extraction with the loader alone and the forward pass alone.

    python -m benchmarks.evaluation.feature_extraction SHARDS CHECKPOINT [--set KEY=VALUE ...]

Each round measures the loader alone, the network on one batch in memory, and both together. Medians over rounds are
reported. The target is 0.9 of the slower one. On a CPU, loader and network share the cores, so give each its own:
OMP_NUM_THREADS for the network, `--set data.decode_threads=...` for the loader. "cores" is the rate at which both
together use all cores: the number of cores divided by the CPU seconds per video in the loader and in the network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.sources import open_shards
from rhofast.evaluation.feature_stream import FeatureStream
from rhofast.evaluation.model import open_model
from rhofast.evaluation.task import placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder or address of a shard set")
    parser.add_argument("checkpoint", help="checkpoint, run or backbone file, as for `rhofast embed`")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="change a setting of the config",
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=1, help="passes over the set per round, for small sets (default: %(default)s)"
    )
    arguments = parser.parse_args()
    model = open_model(arguments.checkpoint, overrides=arguments.settings)
    config, shards = model.config, open_shards(arguments.shards)
    network, settings = placed(model.backbone, config), config.eval
    device = next(network.parameters()).device
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    lower = lower if device.type == "cuda" else None
    samples = np.tile(np.arange(len(shards)), arguments.repeat)
    videos = max(1, settings.batch_size // settings.views)

    def open_loader() -> EvalLoader:
        return EvalLoader(
            shards,
            clips=config.clips,
            augment=config.augment,
            data=config.data,
            views=settings.views,
            samples=samples,
            batch_size=videos,
            device=device,
            dtype=torch.float16 if lower is not None else torch.float32,
        )

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def timed(work: Callable[[], int]) -> tuple[float, float]:
        """Return videos per second, and videos per CPU second."""
        settle()
        began, busy = time.perf_counter(), time.process_time()
        count = work()
        settle()
        return count / (time.perf_counter() - began), count / (time.process_time() - busy)

    def loader_alone() -> int:
        with open_loader() as loader:
            return sum(len(batch.sample) for batch in loader)

    def both() -> int:
        stream = FeatureStream(network, shards, config, samples=samples)
        return sum(len(batch.sample) for batch in stream)

    with open_loader() as loader:
        pixels = next(loader).pixels.flatten(0, 1).clone()
    rounds = -(-arguments.repeat * len(shards) // videos)

    @torch.inference_mode()
    def forward_alone() -> int:
        for _ in range(rounds):
            with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
                network(pixels)
        return rounds * videos

    sources = {"loader": loader_alone, "forward": forward_alone, "features": both}
    rates: dict[str, list[float]] = {name: [] for name in [*sources, "cores"]}
    for number in range(arguments.rounds + 1):
        measured = {name: timed(work) for name, work in sources.items()}
        if number:  # the first round warms up
            for name, (rate, _) in measured.items():
                rates[name].append(rate)
            cost = sum(1 / measured[name][1] for name in ("loader", "forward"))
            rates["cores"].append(len(os.sched_getaffinity(0)) / cost)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    slower = min(medians["loader"], medians["forward"])
    shares = {
        "share_of_the_slower": medians["features"] / slower,
        "share_of_what_the_cores_allow": medians["features"] / min(slower, medians["cores"]),
    }
    print(json.dumps({"videos_per_second": medians, **shares}, indent=1))
    print(facts_line(facts_of_the_machine(("torch", "nvidia-dali-cuda130", "numpy")), os.getloadavg()[0]))


if __name__ == "__main__":
    main()

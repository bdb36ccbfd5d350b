"""Measure the kNN search against the one it replaced, in one process and divided over two, and on a large bank.

    python -m benchmarks.evaluation.knn [--rows 20000] [--queries 2000] [--width 2048] [--large] [--out PATH]

The baseline is numpy on every rank: product, argpartition and votes for all queries. `product` is the matrix product of
the search alone. `bf16` and `int8` are the product of rounded numbers, on a CPU: what a search would take that filters
by rounded products first and then computes the neighbors exactly, if all but the product cost nothing. Seconds are
those of the clock, beside CPU seconds of all threads; with two processes of one thread each, those of the slower one.
With a GPU, the search and the product run there, and two processes are not measured. All that search must give the same
predictions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.evaluation.knn import knn_scores
from rhofast.evaluation.nearest import QUERY_BLOCK

CLASSES, NEIGHBORS, TEMPERATURE = 400, 200, 0.1
LARGE_ROWS, LARGE_QUERIES = 240_000, 1024
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of the search and the product
K400_QUERIES = 2 * 19_800  # two views of each validation video
Problem = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]
Measured = dict[str, list[tuple[float, float]]]  # seconds of the clock and of the CPU, by contender


def problem(rows: int, queries: int, width: int) -> Problem:
    """Return a bank f32[N, D], its labels i64[N] and queries f32[M, 1, D]: overlapping clusters, one per class."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CLASSES, width), dtype=np.float32)

    def draw(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        label = rng.integers(0, CLASSES, count)
        values = 3 * rng.standard_normal((count, width), dtype=np.float32)
        for first in range(0, count, 4096):
            values[first : first + 4096] += centers[label[first : first + 4096]]
        return values, label

    bank, label = draw(rows)
    return bank, label, draw(queries)[0][:, None]


def by_numpy(bank: npt.NDArray[np.float32], label: npt.NDArray[np.int64], queries: Any) -> npt.NDArray[np.float64]:
    """Return the class scores f64[M, C] as rhofast computed them before: on the CPU, all of them in each process."""
    bank = bank / np.linalg.norm(bank, axis=-1, keepdims=True)
    flat = queries[:, 0] / np.linalg.norm(queries[:, 0], axis=-1, keepdims=True)
    scores = np.zeros((len(flat), CLASSES))
    chunk = max(1, (1 << 25) // len(bank))
    for first in range(0, len(flat), chunk):
        similarity = flat[first : first + chunk] @ bank.T
        nearest = np.argpartition(similarity, len(bank) - NEIGHBORS, axis=1)[:, -NEIGHBORS:]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)
        places = np.repeat(np.arange(first, first + len(nearest)), NEIGHBORS)
        np.add.at(scores, (places, label[nearest].reshape(-1)), weight.reshape(-1))
    return scores


def by_rhofast(bank: npt.NDArray[np.float32], label: npt.NDArray[np.int64], queries: Any) -> npt.NDArray[np.float64]:
    """Return the class scores f64[M, C] as rhofast computes them."""
    return knn_scores(
        bank,
        label,
        queries,
        num_classes=CLASSES,
        neighbors=NEIGHBORS,
        temperature=TEMPERATURE,
        device=DEVICE,
    )


def product(bank: npt.NDArray[np.float32], _: Any, queries: npt.NDArray[np.float32]) -> None:
    """Compute the products of the search, and nothing else."""
    rows, flat = torch.from_numpy(bank).to(DEVICE), torch.from_numpy(queries[:, 0]).to(DEVICE)
    for first in range(0, len(flat), QUERY_BLOCK):
        flat[first : first + QUERY_BLOCK] @ rows.T
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rounded_product(
    bank: npt.NDArray[np.float32], _: Any, queries: npt.NDArray[np.float32], dtype: torch.dtype
) -> None:
    """Compute the products of the search with numbers rounded to another type; rounding them is counted, too."""
    rows, flat = (_rounded(torch.from_numpy(values), dtype) for values in (bank, queries[:, 0]))
    for first in range(0, len(flat), QUERY_BLOCK):
        block = flat[first : first + QUERY_BLOCK]
        torch._int_mm(block, rows.T) if dtype == torch.int8 else block @ rows.T


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype != torch.int8:
        return values.to(dtype)
    return (values * (127 / values.abs().amax(dim=1, keepdim=True))).round_().to(dtype)


CONTENDERS: dict[str, Callable[..., Any]] = {"numpy": by_numpy, "rhofast": by_rhofast, "product": product}
if DEVICE.type == "cpu":
    CONTENDERS["bf16"] = partial(rounded_product, dtype=torch.bfloat16)
    CONTENDERS["int8"] = partial(rounded_product, dtype=torch.int8)
DIVIDED = ("numpy", "rhofast")  # what is measured in two processes


def measure(given: Problem, rounds: int, names: Sequence[str]) -> Measured:
    """Return the seconds of each contender in each round, after a round that warms up and compares predictions."""
    predicted = {name: CONTENDERS[name](*given).argmax(axis=1) for name in ("numpy", "rhofast")}
    assert np.array_equal(predicted["numpy"], predicted["rhofast"]), "the predictions differ"
    seconds: Measured = {name: [] for name in names}
    for number in range(rounds):
        turned = number % len(names)
        for name in (*names[turned:], *names[:turned]):
            if dist.is_initialized():
                dist.barrier()
            began, cpu = time.perf_counter(), time.process_time()
            CONTENDERS[name](*given)
            seconds[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return seconds


def _rank(number: int, given: tuple[int, int, int], rounds: int, store: str, out: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    out.put(measure(problem(*given), rounds, DIVIDED))
    dist.destroy_process_group()


def measure_two(given: tuple[int, int, int], rounds: int) -> Measured:
    """Return the seconds of the slower of two processes with one thread each."""
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # of the processes that start from here on
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (given, rounds, f"{folder}/store", out)
        processes = [context.Process(target=_rank, args=(number, *arguments)) for number in range(2)]
        for process in processes:
            process.start()
        both = [out.get() for _ in processes]
        for process in processes:
            process.join()
    return {name: [max(pair) for pair in zip(both[0][name], both[1][name], strict=True)] for name in DIVIDED}


def lines_of(title: str, seconds: Measured) -> list[str]:
    """Return a table in Markdown."""
    lines = [
        f"| {title} | seconds | CPU seconds | numpy takes ... times the seconds | ... the CPU seconds |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, own in seconds.items():
        medians = [statistics.median(column) for column in zip(*own, strict=True)]
        ratios = [
            statistics.median(base[kind] / one[kind] for base, one in zip(seconds["numpy"], own, strict=True))
            for kind in range(2)
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in (*medians, *ratios))} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the bank (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=2_000, help="queries (default: %(default)s)")
    parser.add_argument("--width", type=int, default=2_048, help="numbers per row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--large", action="store_true", help="also search a bank of the size of Kinetics-400")
    parser.add_argument("--out", type=Path, help="folder for knn.json and knn.md")
    options = parser.parse_args()

    facts, load = facts_of_the_machine(("torch", "numpy")), os.getloadavg()[0]
    size = (options.rows, options.queries, options.width)
    measured = {"one process": measure(problem(*size), options.rounds, tuple(CONTENDERS))}
    report: dict[str, Any] = {"machine": facts, "load": load, "size": size, "seconds": measured}
    lines = []
    if options.large:
        large = problem(LARGE_ROWS, LARGE_QUERIES, options.width)
        began, cpu = time.perf_counter(), time.process_time()
        by_rhofast(*large)
        clock, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report["large"] = {"seconds": clock, "cpu_seconds": cpu, "peak_bytes": peak}
        whole = clock * K400_QUERIES / LARGE_QUERIES
        lines = [
            f"A bank of {LARGE_ROWS:,} rows: {clock:.1f} s ({cpu:.1f} CPU seconds) for {LARGE_QUERIES:,} queries; that "
            f"is {whole / 60:.1f} min for {K400_QUERIES:,}; {peak / 1e9:.1f} GB at most in memory, of which the "
            f"features are {large[0].nbytes / 1e9:.1f}.",
            "",
        ]
        del large
    if DEVICE.type == "cpu":
        measured["two processes"] = measure_two(size, options.rounds)
    tables = [line for title, seconds in measured.items() for line in lines_of(title, seconds)]
    text = "\n".join([*tables, *lines, facts_line(facts, load), ""])
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "knn.json").write_text(json.dumps(report, indent=1))
        (options.out / "knn.md").write_text(text)


if __name__ == "__main__":
    main()

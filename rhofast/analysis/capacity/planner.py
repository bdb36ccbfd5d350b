"""Plan a run on a cluster that does not exist yet: bytes, bandwidth, decoding, checkpoints and failures.

    inputs (inputs.py) --plan_capacity--> Plan: facts of the run; per codec its facts, utilizations and advice

The plan is pure arithmetic. It assumes that all stages overlap: the utilization of a resource is its demand at full GPU
speed divided by its capacity, and where the largest utilization is above 1, training takes that many times as long.
Every number carries the names of its inputs, so that every result is known to be given, measured or a default.

Only mean values enter: no spread of durations, no noise of a shared file system, no slow node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rhofast.analysis.capacity import advice
from rhofast.analysis.capacity.advice import CACHE_SPACE, Limit
from rhofast.analysis.capacity.failures import daly_interval, expected_seconds
from rhofast.analysis.capacity.load import Load
from rhofast.analysis.capacity.plan import CodecPlan, Plan
from rhofast.analysis.capacity.quantities import Fact, Input, Number, Origin, weakest
from rhofast.analysis.capacity.remote_costs import RangeLoad, compare, lanes_of_node, range_load
from rhofast.evaluation.nearest import QUERY_BLOCK

_WORTH_SHARE = 0.01  # share of the run that another checkpoint interval must save to be advised
_FLOAT = 4  # bytes of a number
_INDEX_PICTURE, _INDEX_GROUP, _INDEX_ROW = 8.25, 16, 120  # index bytes (format/index.py), the last per sample


def plan_capacity(
    inputs: Mapping[str, Input],
    codecs: tuple[str, ...],
    *,
    remote: bool,
    ranges: bool | None = False,
    fixed_lanes: bool = False,
) -> Plan:
    """Plan a run for each of several codecs.

    Args:
        inputs: Inputs by name, as `collect_inputs` returns them.
        codecs: Names of the codecs.
        remote: Whether shards are behind an address. Otherwise they are files on every node, of which only the needed
            bytes are read.
        ranges: Whether only the needed bytes of remote shards are fetched, and not whole shards into each node's cache;
            None for what `data.remote="auto"` chooses.
        fixed_lanes: Whether a node uses the same lanes in every epoch.

    Returns:
        The plan.

    Raises:
        KeyError: If an input is missing.
    """
    numbers = {name: Number(given.value, frozenset({name})) for name, given in inputs.items()}
    run = _Run(inputs, numbers, remote=remote, ranges=ranges, fixed_lanes=fixed_lanes)
    return Plan(
        inputs=dict(inputs),
        facts=run.facts(),
        notes=tuple(run.notes()),
        codecs=tuple(run.plan_codec(codec) for codec in codecs),
    )


class _Run:
    """The quantities that all codecs share. Rates are those at full GPU speed, of all GPUs together."""

    def __init__(
        self,
        inputs: Mapping[str, Input],
        numbers: Mapping[str, Number],
        *,
        remote: bool,
        ranges: bool | None,
        fixed_lanes: bool,
    ) -> None:
        self.inputs, self.numbers, self.remote, self.ranges = inputs, numbers, remote, ranges
        self.nodes = numbers["gpus"] / numbers["gpus_per_node"]
        self.lanes, self.part = lanes_of_node(numbers.get("lanes"), self.nodes)
        self.ever = self.part if fixed_lanes else Number(1.0)  # share of the set that a node fetches in all epochs
        self.samples = numbers["videos"] * numbers["stored_share"]
        trained = self.samples * numbers["kept_share"] if "kept_share" in numbers else self.samples
        per_epoch = trained / numbers["batch"]
        self.steps_per_epoch = Number(max(1.0, math.floor(per_epoch.value)), per_epoch.basis)
        self.steps = numbers["steps"] if "steps" in numbers else self.steps_per_epoch * numbers["epochs"]
        if "gpu_clips" in numbers:
            self.gpu_rate = numbers["gpu_clips"] / numbers["clips"]
        else:
            self.gpu_rate = numbers["peak"] * numbers["utilization"] / numbers["flops"]
        self.rate = self.gpu_rate * numbers["gpus"]
        self.step_s = numbers["batch"] / self.rate
        self.work_s = self.steps * self.step_s
        self.mtbf_s = numbers["node_mtbf"] / self.nodes
        exchanged = 2 * numbers["gradient_bytes"] * max(0.0, 1 - 1 / self.nodes.value)
        self.exchange = exchanged / self.step_s

    def facts(self) -> dict[str, Fact]:
        """Return the results that do not depend on the codec."""
        numbers = self.numbers
        return {
            "hours": self._fact("total video", numbers["videos"] * numbers["mean_seconds"] / 3600, "h"),
            "samples": self._fact("stored videos", self.samples, "videos"),
            "nodes": self._fact("nodes", self.nodes, "nodes"),
            "batch_per_gpu": self._fact("videos per GPU and step", numbers["batch"] / numbers["gpus"], "videos"),
            "steps_per_epoch": self._fact("steps per epoch", self.steps_per_epoch, "steps"),
            "steps": self._fact("total steps", self.steps, "steps"),
            "seen": self._fact("videos seen in training", self.steps * numbers["batch"], "videos"),
            "flops_per_video": self._fact("operations per video", numbers["flops"], "FLOP"),
            "gpu_clips_per_second": self._fact("speed of one GPU", self.gpu_rate * numbers["clips"], "clips/s"),
            "videos_per_second": self._fact("speed of all GPUs", self.rate, "videos/s"),
            "step_seconds": self._fact("time per step at that speed", self.step_s, "s"),
            "gpu_seconds": self._fact("training time at that speed, without failures", self.work_s, "s"),
            "exchange": self._fact("gradient traffic per node", self.exchange, "B/s"),
            "checkpoint_bytes": self._fact("size of a checkpoint", numbers["checkpoint_bytes"], "B"),
            "checkpoint_write": self._fact(
                "time to write a checkpoint", numbers["checkpoint_bytes"] / numbers["checkpoint_rate"], "s"
            ),
            "checkpoint_disk": self._fact(
                "size of all kept checkpoints", numbers["checkpoint_bytes"] * numbers["keep"], "B"
            ),
            "mtbf": self._fact("mean time between failures", self.mtbf_s, "s"),
            **(self._knn_facts() if "test_videos" in numbers else {}),
        }

    def _knn_facts(self) -> dict[str, Fact]:
        """Return what an evaluation by kNN costs: each GPU holds the bank, the videos and the queries are divided."""
        numbers = self.numbers
        videos, row = self.samples + numbers["test_videos"], numbers["features"] * _FLOAT
        speed = numbers["peak"] * numbers["utilization"] * numbers["gpus"]
        queries = numbers["test_videos"] * numbers["views"]
        products = 2 * self.samples * queries * numbers["features"]
        search = products / (numbers["single_peak"] * numbers["single_utilization"] * numbers["gpus"])
        kept = videos * numbers["views"] * row
        return {
            "knn_extract": self._fact(
                "kNN: time for all features", videos * numbers["views"] * numbers["forward_flops"] / speed, "s"
            ),
            "knn_search": self._fact("kNN: time to find the neighbors", search, "s"),
            "knn_bank": self._fact(
                "kNN: bank and cosines on each GPU", self.samples * (row + QUERY_BLOCK * _FLOAT), "B"
            ),
            "knn_host": self._fact("kNN: shared features in a node's memory", kept, "B"),
        }

    def notes(self) -> Iterator[str]:
        """Yield what the plan does not know, in sentences."""
        numbers = self.numbers
        if "gpu_clips" not in numbers:
            yield from advice.speed_notes(
                numbers["utilization"].value, videos_per_gpu=numbers["batch"].value / numbers["gpus"].value
            )
        if "kept_share" in numbers:
            yield advice.kept_note(numbers["kept_share"].value, remote=self.remote)
        if self.remote and self.ranges is not True:
            yield advice.download_note(self.part.value, fixed=self.ever.value < 1)

    def plan_codec(self, codec: str) -> CodecPlan:
        """Return the plan for one codec."""
        load = self._load(codec)
        limits = sorted(self._limits(codec, load), key=lambda limit: -limit.share)
        flows = [limit for limit in limits if limit.name != CACHE_SPACE]
        basis = frozenset().union(*(limit.basis for limit in flows))
        times, checkpoint_steps = self._times(Number(max(1.0, flows[0].share), basis))
        facts = {**self._load_facts(load), **times}
        sentences = advice.bottlenecks(limits, facts["wall"].value, checkpoint_steps)
        if self.remote and load.ranges is not None:
            both = self._remote_limits(load, by_ranges=True), self._remote_limits(load, by_ranges=False)
            sentences += (compare(list(both[0]), list(both[1]), chosen=load.by_ranges),)
        if load.kept and not load.by_ranges:
            sentences += (advice.first_epoch(*self._carried(load.fetched, load)),)
        return CodecPlan(codec=codec, facts=facts, limits=tuple(limits), advice=sentences)

    def _load(self, codec: str) -> Load:
        numbers, node_rate = self.numbers, self.rate / self.nodes
        codec_inputs = {
            name.partition(".")[2]: number for name, number in numbers.items() if name.startswith(f"{codec}.")
        }
        frames = numbers["mean_seconds"] * numbers["fps"]
        stored = self.samples * frames * codec_inputs["frame_bytes"]
        units = codec_inputs["units_per_frame"]
        index = self.samples * (frames * units * (_INDEX_PICTURE if units.value == 1 else _INDEX_GROUP) + _INDEX_ROW)
        shards = self.samples / codec_inputs["samples_per_shard"]
        host = node_rate * codec_inputs["host_seconds"]
        whole = stored + index
        if "block_shards" in numbers:
            cached = 2 * self.lanes * numbers["block_shards"] * (whole / shards)
        else:  # the parts of this epoch and of the next one
            cached = whole * Number(min(self.ever.value, 2 * self.part.value), self.part.basis)
        ranges = range_load(numbers, codec_inputs, rate=self.rate, videos=self.steps * numbers["batch"])
        kept = self.remote and (whole * self.ever).value <= numbers["cache"].value
        by_ranges = self.ranges is True
        if self.ranges is None and ranges is not None:  # as data/format/remote_choice.py chooses
            more = (self.steps * numbers["batch"] * ranges.bytes_per_video).value > whole.value
            by_ranges = not (whole.value <= numbers["cache"].value and more)
        return Load(
            codec_inputs=codec_inputs,
            stored=stored,
            index=index,
            shards=shards,
            read=codec_inputs["frames_read"] * codec_inputs["frame_bytes"],
            decoded=codec_inputs["frames_decoded"] * self.gpu_rate,
            host=host,
            host_and_decode=host + node_rate * codec_inputs["frames_decoded"] * codec_inputs["host_decode"],
            fetched=whole * self.part / (self.steps_per_epoch * self.step_s),
            blocks=cached,
            kept=kept,
            ranges=ranges,
            by_ranges=self.remote and by_ranges and ranges is not None,
        )

    def _limits(self, codec: str, load: Load) -> Iterator[Limit]:
        numbers, codec_inputs, node_rate = self.numbers, load.codec_inputs, self.rate / self.nodes
        groups = advice.OWN_GROUPS if codec in ("remux", "copy") else advice.SHORTER_GROUPS
        fewer_bytes, less_decoding = (
            (advice.SMALLER_PICTURES, advice.FEWER_PICTURES) if codec == "jpeg" else (groups, groups)
        )
        if "decode_rate" in codec_inputs:
            yield self._limit("GPU decoders", load.decoded / codec_inputs["decode_rate"], less_decoding)
            yield self._limit("CPU cores of a node", load.host / numbers["cores"], advice.MORE_CORES)
        else:
            yield self._limit("CPU cores of a node", load.host_and_decode / numbers["cores"], advice.LESS_HOST_DECODING)
        if "loader_clips" in codec_inputs:
            share = self.gpu_rate * numbers["clips"] / codec_inputs["loader_clips"]
            yield self._limit("the loader, as measured", share, advice.FASTER_LOADER)
        if self.nodes.value > 1:
            yield self._limit("network between nodes", self.exchange / numbers["fabric"], advice.LARGER_BATCH)
        if self.remote:
            yield from self._remote_limits(load, by_ranges=load.by_ranges)
        else:
            yield from self._network_limits(node_rate * load.read, fewer_bytes)

    def _network_limits(self, arriving: Number, remedy: str) -> Iterator[Limit]:
        """Yield the utilizations by `arriving` bytes per second and node."""
        yield self._limit("network to storage, per node", arriving / self.numbers["network"], remedy)
        if "storage" in self.numbers:
            share = arriving * self.nodes / self.numbers["storage"]
            yield self._limit("storage, all nodes together", share, remedy)

    def _remote_limits(self, load: Load, *, by_ranges: bool) -> Iterator[Limit]:
        """Yield the utilizations of what remote shards need."""
        if by_ranges and load.ranges is not None:
            arriving = self.rate / self.nodes * load.ranges.bytes_per_video
            yield from self._network_limits(arriving, advice.FEWER_BYTES)
            yield self._limit("requests to the store", load.ranges.used, advice.FEWER_REQUESTS)
            yield self._limit(CACHE_SPACE, load.index / self.numbers["cache"], advice.INDEX_CACHE)
            return
        arriving = Number(0.0, load.fetched.basis) if load.kept else load.fetched
        remedy = advice.fewer_downloads(self.part.value, nodes=self.nodes.value)
        yield from self._network_limits(arriving, remedy)
        yield self._limit("cache disk of a node", self._carried(arriving, load)[1], remedy)
        yield self._limit(CACHE_SPACE, load.blocks / self.numbers["cache"], advice.LARGER_CACHE)

    def _carried(self, arriving: Number, load: Load) -> tuple[Number, Number]:
        """Return (utilization of the network, utilization of the cache disk) of a node that fetches `arriving` B/s."""
        read = self.rate / self.nodes * load.read
        return arriving / self.numbers["network"], (arriving + read) / self.numbers["disk"]

    def _range_facts(self, ranges: RangeLoad) -> dict[str, Fact]:
        arriving = self.rate / self.nodes * ranges.bytes_per_video
        facts = {
            "requests_per_video": self._fact("by ranges: requests per video", ranges.requests_per_video, "requests"),
            "requests_in_all": self._fact("by ranges: requests, all nodes", ranges.requests_per_second, "requests/s"),
            "ranges_per_node": self._fact("by ranges: download rate per node", arriving, "B/s"),
            "ranges_in_all": self._fact("by ranges: download rate, all nodes", arriving * self.nodes, "B/s"),
        }
        if ranges.cost is not None:
            facts["request_cost"] = self._fact("by ranges: cost of all requests", ranges.cost, "$")
        return facts

    def _load_facts(self, load: Load) -> dict[str, Fact]:
        numbers, codec_inputs, reading = self.numbers, load.codec_inputs, self.rate * load.read
        return {
            "shard_bytes": self._fact("size of all shards", load.stored, "B"),
            "index_bytes": self._fact("size of their indices", load.index, "B"),
            "shards": self._fact("number of shards", load.shards, "shards"),
            "bytes_per_shard": self._fact("size per shard with index", (load.stored + load.index) / load.shards, "B"),
            "ingest": self._fact(
                "core-hours to make the shards", numbers["videos"] * codec_inputs["ingest_seconds"] / 3600, "core-hours"
            ),
            "read_per_video": self._fact("bytes read per video", load.read, "B"),
            "read_per_epoch": self._fact("bytes read per epoch", self.samples * load.read, "B"),
            "read_per_node": self._fact("read rate per node", reading / self.nodes, "B/s"),
            "read_in_all": self._fact("read rate, all nodes", reading, "B/s"),
            "fetched_per_node": self._fact("remote shards: download rate per node", load.fetched, "B/s"),
            "fetched_in_all": self._fact("remote shards: download rate, all nodes", load.fetched * self.nodes, "B/s"),
            "cache_needed": self._fact("remote shards: cache per node", load.blocks, "B"),
            **(self._range_facts(load.ranges) if self.remote and load.ranges is not None else {}),
            "decoded_per_video": self._fact("frames decoded per video", codec_inputs["frames_decoded"], "frames"),
            "decoded_per_gpu": self._fact("decoding rate per GPU", load.decoded, "frames/s"),
            "host_cores": self._fact("cores per node, without decoding", load.host, "cores"),
            "host_decode_cores": self._fact("cores per node, if they also decode", load.host_and_decode, "cores"),
        }

    def _times(self, slowdown: Number) -> tuple[dict[str, Fact], tuple[int, float] | None]:
        """Compute how long training takes with checkpoints and failures.

        Args:
            slowdown: Training time divided by the time at full GPU speed.

        Returns:
            The facts, and (train.checkpoint_steps, share of the time that it saves) if another interval is worth it.
        """
        numbers, stall, mtbf = self.numbers, self.numbers["stall"], self.mtbf_s
        step_s, work = self.step_s * slowdown, self.work_s * slowdown
        interval = numbers["checkpoint_steps"] * step_s
        writing = numbers["checkpoint_bytes"] / numbers["checkpoint_rate"]
        best = Number(max(daly_interval(stall.value, mtbf.value), writing.value), stall.basis | mtbf.basis)

        def taken(between: Number) -> Number:
            seconds = expected_seconds(
                work.value,
                interval=between.value,
                stall=stall.value,
                restart=numbers["restart"].value,
                mtbf=mtbf.value,
            )
            return Number(seconds, work.basis | between.basis | numbers["restart"].basis | best.basis)

        wall, least = taken(interval), taken(best).value
        better = None
        if wall.value - least > _WORTH_SHARE * work.value:
            better = max(1, round(best.value / step_s.value)), 1 - least / wall.value
        return {
            "slowdown": self._fact("slowdown of training", slowdown, "x"),
            "interval": self._fact("checkpoint interval of the configuration", interval, "s"),
            "optimal_interval": self._fact("optimal checkpoint interval (Daly)", best, "s"),
            "checkpoint_rate": self._fact("checkpoint write rate", numbers["checkpoint_bytes"] / interval, "B/s"),
            "interruptions": self._fact("expected interruptions", wall / mtbf, "interruptions"),
            "lost": self._fact("time lost to failures and checkpoints", wall - work, "s"),
            "wall": self._fact("total training time", wall, "s"),
        }, better

    def _origin(self, basis: frozenset[str]) -> Origin:
        return weakest(self.inputs[name].origin for name in basis)

    def _fact(self, label: str, number: Number, unit: str) -> Fact:
        return Fact(
            label=label,
            value=number.value,
            unit=unit,
            origin=self._origin(number.basis),
            basis=tuple(sorted(number.basis)),
        )

    def _limit(self, name: str, share: Number, remedy: str) -> Limit:
        origin, basis = self._origin(share.basis), tuple(sorted(share.basis))
        return Limit(name=name, share=share.value, origin=origin, basis=basis, remedy=remedy)

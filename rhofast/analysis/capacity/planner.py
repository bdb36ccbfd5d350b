"""A run on paper: bytes, bandwidth, decoding, checkpoints and failures of a cluster that does not stand yet.

Arithmetic alone. Every number knows what it rests on, so that every result can say whether it is given, measured or a
default. The machine is taken to work on everything at the same time: at the pace of the GPUs each resource is asked for
a share of what it has, and where the largest share is above 1, that resource starves the GPUs and training takes that
many times as long.

    inputs (evidence.py) --plan_capacity--> Plan: facts of the run; of each codec its facts, limits and a verdict

What it is not: it measures and reads nothing (evidence.py), and prints nothing (cli.tables). It knows means only: no
spread of durations, no noise of a shared file system, no slow node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rhofast.analysis.capacity.failures import daly_interval, expected_seconds
from rhofast.analysis.capacity.quantities import Fact, Input, Number, Origin, amount, weakest

_SHORTER = "shorter groups (rhofast shard --gop), a lower --fps, a smaller --short-side, or jpeg"
_SMALLER = "a smaller --short-side, fewer clips a video, or GPUs with more JPEG engines"
_LIGHTER = "a smaller --short-side or a coarser --quality"
_LARGER_BATCH = "a larger train.batch_size, so that gradients meet less often"
_MOUNT = "mount the shards as files, of which only the needed bytes are read; store h264 or hevc; or cache "
_WHOLE, _FIXED = "the whole set", "each node's lanes for good (data.fixed_lanes, data.cache_gb)"
_LANES = "as many data.lanes as nodes, so that each fetches its own part of the set"
_STEADIER = "fewer nodes (--gpus), a shorter restart, or train.checkpoint_steps"
_BLOCKS = "fewer shards at a time (data.block_shards), or a larger data.cache_gb"
_CORES = "nodes with more cores a GPU"
_HOST_CORES = "decode on the GPU (data.decoder), shorter groups (rhofast shard --gop), jpeg, or more cores a GPU"

_INDEX_UNIT, _INDEX_ROW = 32, 120  # bytes of an index: of a unit (frame, offset, size, CRC, color), and of the rest
_FILLS = 4  # videos from which on a GPU may be busy
_NEAR = 0.8  # share of a resource from which on it is worth a word
_ROOM = "room in the cache"
_WORTH = 0.01  # share of the run that another checkpoint interval must save to be worth a word


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A resource. share: of what it has, what is asked of it at the pace of the GPUs; remedy: what would lower it."""

    name: str
    share: float
    origin: Origin
    basis: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecPlan:
    """What holds for one codec. limits: the fullest first; verdict: what starves first and what to change."""

    codec: str
    facts: dict[str, Fact]
    limits: tuple[Limit, ...]
    verdict: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """inputs: by name; those of one codec begin with CODEC and a dot. cautions: where the plan may well be wrong."""

    inputs: dict[str, Input]
    facts: dict[str, Fact]
    cautions: tuple[str, ...]
    codecs: tuple[CodecPlan, ...]

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


def plan_capacity(
    inputs: Mapping[str, Input], codecs: tuple[str, ...], *, remote: bool, fixed_lanes: bool = False
) -> Plan:
    """The plan of a run for each of `codecs`. inputs: as evidence.py gathers them. remote: shards lie behind an address
    and come whole through each node's cache; else they are files of every node, of which only the needed bytes are
    read. fixed_lanes: a node needs the same ones in every epoch. Raises KeyError for an input that is missing."""
    numbers = {name: Number(one.value, frozenset({name})) for name, one in inputs.items()}
    run = _Run(inputs, numbers, remote=remote, fixed_lanes=fixed_lanes)
    return Plan(
        inputs=dict(inputs),
        facts=run.facts(),
        cautions=tuple(run.cautions()),
        codecs=tuple(run.plan_codec(codec) for codec in codecs),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    """What one codec asks for, at the pace of the GPUs. own: its inputs; stored, index: bytes of the set; read: bytes a
    video; decoded: frames a second and GPU; host, host_and_decode: cores of a node; fetched: bytes a second by each
    node, where shards travel whole; blocks: bytes that its cache must hold then; kept: whether it can hold all that
    the node ever needs, so that only the first epoch fetches."""

    own: Mapping[str, Number]
    stored: Number
    index: Number
    shards: Number
    read: Number
    decoded: Number
    host: Number
    host_and_decode: Number
    fetched: Number
    blocks: Number
    kept: bool


class _Run:
    """What all codecs share. Of one rate `x`: `x` a second in all, at the pace of the GPUs."""

    def __init__(
        self, inputs: Mapping[str, Input], numbers: Mapping[str, Number], *, remote: bool, fixed_lanes: bool
    ) -> None:
        self.inputs, self.of, self.remote = inputs, numbers, remote
        of = numbers
        self.nodes = of["gpus"] / of["gpus_per_node"]
        self.lanes, self.part = _lanes(of.get("lanes"), self.nodes)
        self.ever = self.part if fixed_lanes else Number(1.0)  # share of the set that a node fetches in all epochs
        self.samples = of["videos"] * of["stored_share"]
        per_epoch = self.samples / of["batch"]
        self.steps_per_epoch = Number(max(1.0, math.floor(per_epoch.value)), per_epoch.basis)
        self.steps = of["steps"] if "steps" in of else self.steps_per_epoch * of["epochs"]
        if "gpu_clips" in of:
            self.gpu_rate = of["gpu_clips"] / of["clips"]
        else:
            self.gpu_rate = of["peak"] * of["utilization"] / of["flops"]
        self.rate = self.gpu_rate * of["gpus"]
        self.step_s = of["batch"] / self.rate
        self.work_s = self.steps * self.step_s
        self.mtbf_s = of["node_mtbf"] / self.nodes
        exchanged = 2 * of["gradient_bytes"] * max(0.0, 1 - 1 / self.nodes.value)
        self.exchange = exchanged / self.step_s

    def facts(self) -> dict[str, Fact]:
        of = self.of
        return {
            "hours": self._fact("video in all", of["videos"] * of["mean_seconds"] / 3600, "h"),
            "samples": self._fact("videos stored", self.samples, "videos"),
            "nodes": self._fact("nodes", self.nodes, "nodes"),
            "batch_per_gpu": self._fact("batch on each GPU", of["batch"] / of["gpus"], "videos"),
            "steps_per_epoch": self._fact("steps an epoch", self.steps_per_epoch, "steps"),
            "steps": self._fact("steps", self.steps, "steps"),
            "seen": self._fact("videos seen", self.steps * of["batch"], "videos"),
            "flops_per_video": self._fact("operations a video", of["flops"], "FLOP"),
            "gpu_clips_per_second": self._fact("pace of a GPU", self.gpu_rate * of["clips"], "clips/s"),
            "videos_per_second": self._fact("pace in all", self.rate, "videos/s"),
            "step_seconds": self._fact("a step at that pace", self.step_s, "s"),
            "gpu_seconds": self._fact("training at that pace, nothing failing", self.work_s, "s"),
            "exchange": self._fact("gradients sent, each node", self.exchange, "B/s"),
            "checkpoint_bytes": self._fact("a checkpoint", of["checkpoint_bytes"], "B"),
            "checkpoint_write": self._fact("writing it", of["checkpoint_bytes"] / of["checkpoint_rate"], "s"),
            "checkpoint_disk": self._fact("checkpoints kept", of["checkpoint_bytes"] * of["keep"], "B"),
            "mtbf": self._fact("between interruptions", self.mtbf_s, "s"),
        }

    def cautions(self) -> Iterator[str]:
        of = self.of
        if "gpu_clips" not in of:
            used = amount(of["utilization"].value, "share")
            yield f"the pace is {used} of the GPUs' peak; `rhofast bench step` on one of them measures it (--bench)."
            yield "what decoding and augmenting take of the GPUs' own time is not in it; `rhofast bench both` has that."
            if of["batch"].value / of["gpus"].value < _FILLS:
                yield "so few videos do not fill a GPU: steps will be slower; a larger train.batch_size, or fewer GPUs."
        if self.remote:
            part = self.part.value
            shards = "every shard" if part == 1 else f"{amount(part, 'share')} of the shards"
            same = ", always the same ones" if self.ever.value < 1 else ""
            kept = "but for what its cache still holds"
            yield f"behind an address, every node fetches {shards} of every epoch{same}, {kept}."

    def plan_codec(self, codec: str) -> CodecPlan:
        load = self._load(codec)
        limits = sorted(self._limits(codec, load), key=lambda limit: -limit.share)
        flows = [limit for limit in limits if limit.name != _ROOM]
        basis = frozenset().union(*(limit.basis for limit in flows))
        times, advice = self._times(Number(max(1.0, flows[0].share), basis))
        facts = {**self._load_facts(load), **times}
        verdict = _verdict(limits, facts["wall"], advice)
        if load.kept:
            verdict += (self._filling(load),)
        return CodecPlan(codec=codec, facts=facts, limits=tuple(limits), verdict=verdict)

    def _load(self, codec: str) -> _Load:
        of, node_rate = self.of, self.rate / self.nodes
        own = {name.partition(".")[2]: number for name, number in of.items() if name.startswith(f"{codec}.")}
        frames = of["mean_seconds"] * of["fps"]
        stored = self.samples * frames * own["frame_bytes"]
        index = self.samples * (frames * own["units_per_frame"] * _INDEX_UNIT + _INDEX_ROW)
        shards = self.samples / own["samples_per_shard"]
        host = node_rate * own["host_seconds"]
        whole = stored + index
        if "block_shards" in of:
            held = 2 * self.lanes * of["block_shards"] * (whole / shards)
        else:  # of this epoch and of the next one
            held = whole * Number(min(self.ever.value, 2 * self.part.value), self.part.basis)
        return _Load(
            own=own,
            stored=stored,
            index=index,
            shards=shards,
            read=own["frames_read"] * own["frame_bytes"],
            decoded=own["frames_decoded"] * self.gpu_rate,
            host=host,
            host_and_decode=host + node_rate * own["frames_decoded"] * own["host_decode"],
            fetched=whole * self.part / (self.steps_per_epoch * self.step_s),
            blocks=held,
            kept=self.remote and (whole * self.ever).value <= of["cache"].value,
        )

    def _limits(self, codec: str, load: _Load) -> Iterator[Limit]:
        of, own, node_rate = self.of, load.own, self.rate / self.nodes
        lighter, fewer = (_LIGHTER, _SMALLER) if codec == "jpeg" else (_SHORTER, _SHORTER)
        if "decode_rate" in own:
            yield self._limit("decoding on the GPU", load.decoded / own["decode_rate"], fewer)
            yield self._limit("cores of a node", load.host / of["cores"], _CORES)
        else:
            yield self._limit("cores of a node", load.host_and_decode / of["cores"], _HOST_CORES)
        if "loader_clips" in own:
            share = self.gpu_rate * of["clips"] / own["loader_clips"]
            yield self._limit("the loader, as measured", share, "what `rhofast bench loader` advises")
        if self.nodes.value > 1:
            yield self._limit("links between the nodes", self.exchange / of["fabric"], _LARGER_BATCH)
        coming = node_rate * load.read
        if self.remote:
            coming = Number(0.0, load.fetched.basis) if load.kept else load.fetched
            mount = _MOUNT + (_WHOLE if self.part.value == 1 else _FIXED)
            lighter = mount if self.part.value <= 1 / self.nodes.value else f"{_LANES}; {mount}"
            network, disk = self._carried(coming, load)
            yield self._limit("downloading, each node's network", network, lighter)
            yield self._limit("the cache's disk", disk, lighter)
            yield self._limit(_ROOM, load.blocks / of["cache"], _BLOCKS)
        else:
            yield self._limit("reading, each node's network", coming / of["network"], lighter)
        if "storage" in of:
            yield self._limit("the storage, all nodes", coming * self.nodes / of["storage"], lighter)

    def _carried(self, coming: Number, load: _Load) -> tuple[Number, Number]:
        """(share of its network, share of the cache's disk) that a node asks for which fetches `coming`, in B/s."""
        read = self.rate / self.nodes * load.read
        return coming / self.of["network"], (coming + read) / self.of["disk"]

    def _filling(self, load: _Load) -> str:
        """In words: the epoch that fetches what all others find in the cache, and which the limits leave out."""
        network, disk = self._carried(load.fetched, load)
        asked = f"{amount(network.value, 'share')} of each node's network and {amount(disk.value, 'share')} of its disk"
        slower = max(network.value, disk.value)
        return f"The first epoch fills the caches: it asks for {asked}" + (
            f", so it takes {_times(slower)} as long." if slower > 1 else "."
        )

    def _load_facts(self, load: _Load) -> dict[str, Fact]:
        of, own, reading = self.of, load.own, self.rate * load.read
        return {
            "shard_bytes": self._fact("shards", load.stored, "B"),
            "index_bytes": self._fact("their indices", load.index, "B"),
            "shards": self._fact("number of shards", load.shards, "shards"),
            "bytes_per_shard": self._fact("a shard with its index", (load.stored + load.index) / load.shards, "B"),
            "ingest": self._fact("core-hours to make them", of["videos"] * own["ingest_seconds"] / 3600, "core-hours"),
            "read_per_video": self._fact("read for a video", load.read, "B"),
            "read_per_epoch": self._fact("read in an epoch", self.samples * load.read, "B"),
            "read_per_node": self._fact("read, each node", reading / self.nodes, "B/s"),
            "read_in_all": self._fact("read, all nodes", reading, "B/s"),
            "fetched_per_node": self._fact("behind an address: each node fetches", load.fetched, "B/s"),
            "fetched_in_all": self._fact("behind an address: all nodes fetch", load.fetched * self.nodes, "B/s"),
            "cache_needed": self._fact("behind an address: cache, each node", load.blocks, "B"),
            "decoded_per_video": self._fact("frames decoded for a video", own["frames_decoded"], "frames"),
            "decoded_per_gpu": self._fact("frames/s decoded, each GPU", load.decoded, "frames/s"),
            "host_cores": self._fact("cores that plan and read, each node", load.host, "cores"),
            "host_decode_cores": self._fact("cores, if they decoded too", load.host_and_decode, "cores"),
        }

    def _times(self, pace: Number) -> tuple[dict[str, Fact], str | None]:
        """Facts of a run that is slowed down `pace` times, and what to say of its checkpoints."""
        of, stall, mtbf = self.of, self.of["stall"], self.mtbf_s
        step_s, work = self.step_s * pace, self.work_s * pace
        interval = of["checkpoint_steps"] * step_s
        writing = of["checkpoint_bytes"] / of["checkpoint_rate"]
        best = Number(max(daly_interval(stall.value, mtbf.value), writing.value), stall.basis | mtbf.basis)

        def taken(between: Number) -> Number:
            seconds = expected_seconds(
                work.value,
                interval=between.value,
                stall=stall.value,
                restart=of["restart"].value,
                mtbf=mtbf.value,
            )
            return Number(seconds, work.basis | between.basis | of["restart"].basis | best.basis)

        wall, least = taken(interval), taken(best).value
        advice = None
        if wall.value - least > _WORTH * work.value:
            steps, saved = max(1, round(best.value / step_s.value)), 1 - least / wall.value
            advice = f"--set train.checkpoint_steps={steps} would save {saved:.0%} of the time"
        return {
            "pace": self._fact("training slowed down", pace, "x"),
            "interval": self._fact("between checkpoints, as the page has it", interval, "s"),
            "optimal_interval": self._fact("between checkpoints, at best (Daly)", best, "s"),
            "checkpoint_rate": self._fact("checkpoints written", of["checkpoint_bytes"] / interval, "B/s"),
            "interruptions": self._fact("interruptions expected", wall / mtbf, "interruptions"),
            "lost": self._fact("lost to them and to checkpoints", wall - work, "s"),
            "wall": self._fact("training, in all", wall, "s"),
        }, advice

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


def _lanes(lanes: Number | None, nodes: Number) -> tuple[Number, Number]:
    """(lanes of which a node keeps blocks, share of the set that it fetches an epoch). Without lanes its part of a
    batch may come from any shard."""
    if lanes is None:
        return Number(1.0), Number(1.0)
    mine = Number(math.ceil(lanes.value / nodes.value), lanes.basis | nodes.basis)
    return mine, mine / lanes


def _verdict(limits: list[Limit], wall: Fact, advice: str | None) -> tuple[str, ...]:
    """In words: what cannot work, what starves first and what would change that, what comes next."""
    told = []
    room = [limit for limit in limits if limit.name == _ROOM and limit.share > 1]
    flows = [limit for limit in limits if limit.name != _ROOM]
    if room:
        asked = _times(room[0].share)
        told.append(
            f"Training would refuse to begin: the cache must hold {asked} what it may. Change: {room[0].remedy}."
        )
    starved, ends = [limit for limit in flows if limit.share > 1], f"all of it takes {amount(wall.value, wall.unit)}"
    if not math.isfinite(wall.value):
        ends = f"it never ends: machines fail before the run has begun again and saved ({_STEADIER} may help)"
    if starved:
        first = starved[0]
        told.append(
            f"First to starve: {first.name}, asked for {_times(first.share)} what there is, so that {ends}. "
            f"Change: {first.remedy}."
        )
        told += [f"Then: {one.name}, {_times(one.share)} what there is. Change: {one.remedy}." for one in starved[1:]]
    else:
        told.append(
            f"Nothing starves: the GPUs are the limit, and {ends}. Next would be {flows[0].name}, at "
            f"{amount(flows[0].share, 'share')} of what there is."
        )
    told += [f"Close: {one.name}, at {one.share:.0%}." for one in flows[1:] if _NEAR < one.share <= 1]
    if advice is not None:
        told.append(f"Checkpoints: {advice}.")
    return tuple(told)


def _times(share: float) -> str:
    return f"{share:,.3g} times" if share < 100 else f"{share:,.0f} times"

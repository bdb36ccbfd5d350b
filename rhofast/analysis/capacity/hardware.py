"""Capacities of the machines: what the user gives, data sheets, and guesses that are marked as such."""

from __future__ import annotations

from dataclasses import dataclass

from rhofast.analysis.capacity.options import GPU, PlannerOptions
from rhofast.analysis.capacity.quantities import Input, given, given_or_default
from rhofast.config.schema import Config
from rhofast.data.codecs.codec import Codec

_HD = 1920 * 1080

_DATA_SHEET = "NVIDIA's data sheet, dense"
_NVDEC = "NVDEC application note 13.0, per engine at 1920x1080; up to 4 times as many small frames (a guess)"
_NVJPEG = "7,000 images/s on the 5 engines of an A100 (blog on nvJPEG); the same per engine for others (guess)"


@dataclass(frozen=True, slots=True)
class _GPUSpecs:
    """Capacities of a GPU.

    Attributes:
        peak: FLOP/s of tensor cores at 16 bits; TF32 has half of it.
        single: FLOP/s in float32.
        link: Bytes per second to other nodes.
        nvdec: Number of engines that decode video.
        nvjpeg: Number of engines that decode JPEG.
    """

    peak: float
    single: float
    link: float
    nvdec: int
    nvjpeg: int


_GPUS: dict[str, _GPUSpecs] = {
    "a100": _GPUSpecs(312e12, 19.5e12, 25e9, 5, 5),
    "h100": _GPUSpecs(989e12, 67e12, 50e9, 7, 7),
    "h200": _GPUSpecs(989e12, 67e12, 50e9, 7, 7),
}
_NVDEC_FPS = {"h264": 771.0, "hevc": 1316.0, "remux": 771.0, "copy": 771.0}
_SMALL_FRAMES = 4.0  # NVDEC decodes at most this many times the frames of 1920x1080
_JPEG_FPS = 1400.0


def machine_inputs(config: Config, options: PlannerOptions) -> dict[str, Input]:
    """Collect the capacities of nodes, network and storage, and how often nodes fail.

    Args:
        config: Configuration of the run.
        options: What the user gave.

    Returns:
        The inputs by name.
    """
    gpu, per_node = _GPUS[options.gpu], options.gpus_per_node
    full = config.train.precision == "fp32"
    peak = Input(
        value=gpu.peak / 2 if full else gpu.peak,
        unit="FLOP/s",
        origin="default",
        source=f"{options.gpu}, {'TF32' if full else '16 bits'}, {_DATA_SHEET}",
    )
    llama_mtbf = 16384 / per_node * 54 * 86400 / 419
    inputs = {
        "gpus": given(options.gpus, "GPUs", "--gpus"),
        "gpus_per_node": given(min(per_node, options.gpus), "GPUs", "--gpus-per-node"),
        "peak": peak,
        "utilization": given_or_default(
            options.utilization, "--utilization", "share", 0.25, "a guess; a higher value needs more of everything else"
        ),
        "cores": given_or_default(
            options.cores, "--cores-per-node", "cores", 14 * per_node, "112 per 8 GPUs, as in a DGX H100"
        ),
        "network": given_or_default(
            options.network, "--network", "B/s", 12.5e9, "a guess: 100 Gbit/s from the storage to each node"
        ),
        "fabric": given_or_default(
            options.fabric, "--fabric", "B/s", gpu.link * per_node, "one adapter per GPU, as in a DGX with these GPUs"
        ),
        "request_rate": given_or_default(
            options.request_rate,
            "--request-rate",
            "requests/s",
            5500.0,
            "reads per second and prefix that Amazon states for S3; other stores state other limits",
        ),
        "prefixes": given_or_default(
            options.prefixes, "--prefixes", "prefixes", 1.0, "the shards of a set are in one folder"
        ),
        "disk": given_or_default(options.disk, "--disk", "B/s", 5e9, "a guess: one NVMe drive per node"),
        "node_mtbf": given_or_default(
            options.node_mtbf,
            "--mtbf-hours",
            "s",
            llama_mtbf,
            "419 interruptions of 16,384 GPUs in 54 days, arXiv 2407.21783",
        ),
        "restart": given_or_default(
            options.restart, "--restart-minutes", "s", 600.0, "a guess: detection, queue and start of the job"
        ),
        "stall": Input(
            value=0.1, unit="s", origin="default", source="a guess: how long a checkpoint stops the training thread"
        ),
        "checkpoint_rate": Input(
            value=1e9, unit="B/s", origin="default", source="a guess: one writer on shared storage"
        ),
    }
    if options.test_videos is not None:
        inputs["single_peak"] = Input(
            value=gpu.single, unit="FLOP/s", origin="default", source=f"{options.gpu}, float32, {_DATA_SHEET}"
        )
        inputs["single_utilization"] = Input(
            value=0.5, unit="share", origin="default", source="a guess: products and the choice of the nearest rows"
        )
    if options.request_cost is not None:
        inputs["request_cost"] = given(options.request_cost / 1e6, "$", "--request-cost")
    if options.storage is not None:
        inputs["storage"] = given(options.storage, "B/s", "--storage")
    return inputs


def decode_rate(gpu: GPU, codec: Codec, pixels: float) -> Input:
    """Return the frames per second that the engines of a GPU decode.

    Args:
        gpu: Model of the GPU.
        codec: The codec.
        pixels: Pixels per stored frame.

    Returns:
        The rate.
    """
    specs = _GPUS[gpu]
    if codec.pictures:
        rate, source = specs.nvjpeg * _JPEG_FPS, _NVJPEG
    else:
        rate, source = specs.nvdec * _NVDEC_FPS[codec.name] * min(_HD / pixels, _SMALL_FRAMES), _NVDEC
    return Input(value=rate, unit="frames/s", origin="default", source=source)

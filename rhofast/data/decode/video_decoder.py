"""Streams of video, trimmed by the reader, decoded by DALI on the device: NVDEC on a GPU.

    Stream u8[bytes], wanted i32[F] --DALI: decoders.video--> RGB u8[F, H, W, 3] on the device --> F frames, each a view

It is a pipeline of its own before the one that augments (pipeline.py): here a batch is B streams with a number of
frames each, there it is N = B * P * T pictures, and a DALI graph has one batch size. What is passed on stays on the
device; the augmenting graph copies it once, from device to device.

DALI's decoder has three habits that decide how it is asked. It decodes from the beginning of what it is given to the
last wanted frame, so it is given the needed groups alone. A frame asked for twice is decoded twice, so each is asked
for once, and clips that overlap share it. A number past the end gives black without a word, unless told not to pad.

On the GPU the frames are made in the order of torch's current stream of that device, without waiting for it: whoever
uses them on another stream must let that one wait for this one. Their memory is DALI's, and is given back when the last
frame of a sample is let go.

What it is not: it reads and trims nothing (reader.py, codecs.py), and does not decide who decodes (capabilities.py).
DALI's CPU decoder takes MJPEG, VP8 and VP9, not H.264 and HEVC; for those, frames are decoded by the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rhofast.data.decode.dali import import_dali, reason_of
from rhofast.data.types import Sample, Stream
from rhofast.errors import UndecodableError

Frames = dict[int, torch.Tensor]


class VideoDecoder:
    """Not thread-safe: run it in one thread at a time."""

    def __init__(self, *, max_samples: int, threads: int, device_id: int | None = None) -> None:
        """max_samples: the largest number of samples in a batch. threads: how many streams are decoded at once; on a
        GPU twice the engines of its decoder keep them busy. device_id: the CUDA device, or None for the CPU. Raises
        DependencyError where DALI is not installed."""
        self._options = {"batch_size": max_samples, "num_threads": threads, "device_id": device_id}
        self._device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self._pipeline = _graph(**self._options)

    def decode(self, samples: Sequence[Sample]) -> list[Frames]:
        """For each sample, frame number -> RGB u8[H, W, 3] on the device. Those of its stream are decoded; pictures of
        a sample that was decoded on the host are copied to the device.

        Raises UndecodableError, which tells all samples whose streams are refused, and RuntimeError where DALI fails
        for another reason. The decoder can be used again afterwards.
        """
        streams = {place: sample.stream for place, sample in enumerate(samples) if sample.stream is not None}
        try:
            decoded = self._run(list(streams.values()))
        except RuntimeError as error:
            self._pipeline = _graph(**self._options)
            refused = self._refused(streams)
            raise UndecodableError(refused) if refused else error from None
        frames = dict(zip(streams, decoded, strict=True))
        return [frames[place] if place in frames else self._placed(sample) for place, sample in enumerate(samples)]

    def _placed(self, sample: Sample) -> Frames:
        return {frame: torch.from_numpy(picture).to(self._device) for frame, picture in sample.pictures.items()}

    def _run(self, streams: list[Stream]) -> list[Frames]:
        if not streams:
            return []
        self._pipeline.feed_input("encoded", [stream.content for stream in streams])
        self._pipeline.feed_input("frames", [stream.wanted for stream in streams])
        if self._device.type == "cpu":
            (output,) = self._pipeline.run()
        else:
            (output,) = self._pipeline.run(torch.cuda.current_stream(self._device))
        # Each is a tensor of its own, since they differ in size and number of frames.
        pixels = [torch.utils.dlpack.from_dlpack(output[place]) for place in range(len(streams))]
        return [
            dict(zip(stream.frames.tolist(), tensor.unbind(), strict=True))
            for stream, tensor in zip(streams, pixels, strict=True)
        ]

    def _refused(self, streams: dict[int, Stream]) -> dict[int, str]:
        """The streams that the decoder refuses on their own, and why; slow, and only after an error."""
        refused = {}
        for place, stream in streams.items():
            try:
                self._run([stream])
            except RuntimeError as error:
                refused[place] = reason_of(error)
                self._pipeline = _graph(**self._options)
        return refused


def _graph(**options: Any) -> Any:
    """The graph, built."""
    fn, pipeline_def, types = import_dali()

    # Decoding waits for the device at each frame, so a second batch in flight would only take memory.
    @pipeline_def(prefetch_queue_depth=1, **options)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1, no_copy=True)
        return fn.decoders.video(
            encoded,
            device="cpu" if options["device_id"] is None else "mixed",
            frames=frames,
            pad_mode="none",
            affine=False,  # ranks of one machine would pin their threads to the same cores
        )

    pipeline = graph()
    pipeline.build()
    return pipeline

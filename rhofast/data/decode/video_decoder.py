"""Decode video streams, trimmed by the reader, with DALI on the device; on a GPU with NVDEC.

    Stream u8[bytes], wanted i32[F] --DALI: decoders.video--> RGB u8[F, H, W, 3] on the device --> F frames, each a view

This is a separate pipeline before the one that augments (pipeline.py). A batch has B streams here, with a number of
frames each, and N = B * P * T pictures there, but a DALI graph has one batch size. The frames stay on the device; the
augmenting graph copies them once, from device to device.

Three properties of the decoder of DALI determine its inputs. It decodes from the beginning of a stream to the last
wanted frame, so it gets only the groups of pictures that are needed. It decodes a frame twice if the frame is listed
twice, so each frame is listed once, and overlapping clips share it. For a number past the end it returns black frames
without an error, unless padding is off.

On a GPU the frames are produced in the order of the current torch stream of the device, without waiting for it: a user
on another stream must let that stream wait for this one. The memory of the frames belongs to DALI, and is released with
the last frame of a sample.

Reading and trimming are done by format/reader.py and the codecs; capabilities.py chooses the decoder. The CPU decoder
of DALI accepts MJPEG, VP8 and VP9, but not H.264 and HEVC, whose frames the reader decodes instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rhofast.data.decode.dali import error_of_batch, import_dali, reason_of
from rhofast.data.types import Sample, Stream

Frames = dict[int, torch.Tensor]


class VideoDecoder:
    """A DALI pipeline that decodes video streams. It is not thread-safe: only one thread at a time may use it."""

    def __init__(self, *, max_samples: int, threads: int, device_id: int | None = None) -> None:
        """Build the graph.

        Args:
            max_samples: Largest number of samples in a batch.
            threads: Number of streams that are decoded at the same time. On a GPU, twice the number of the engines of
                its decoder keeps them busy.
            device_id: Number of the CUDA device, or None for the CPU.

        Raises:
            DependencyError: DALI is not installed.
        """
        self._options = {"batch_size": max_samples, "num_threads": threads, "device_id": device_id}
        self._device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self._pipeline = _build_graph(**self._options)
        # A stream of the last batch. If all streams of a batch fail, it shows whether they are to blame.
        self._known_good: Stream | None = None

    def decode(self, samples: Sequence[Sample]) -> list[Frames]:
        """Decode the streams of samples, and copy pictures that were decoded on the host to the device.

        The decoder can be used again after an error.

        Args:
            samples: The samples of a batch, with a stream or with RGB pictures each.

        Returns:
            For each sample, frame number -> RGB u8[H, W, 3] on the device.

        Raises:
            UndecodableError: The decoder rejects some streams; the error names all of them.
            RuntimeError: DALI fails for another reason, such as an error of the device.
        """
        streams = {place: sample.stream for place, sample in enumerate(samples) if sample.stream is not None}
        try:
            decoded = self._run(list(streams.values()))
        except RuntimeError as error:
            good = self._known_good
            raise error_of_batch(
                error,
                lambda: self._find_rejected(streams),
                samples=len(streams),
                decode_known_good=None if good is None else (lambda: self._run([good])),
                device_id=self._options["device_id"],
            ) from None
        self._known_good = next(iter(streams.values()), self._known_good)
        frames = dict(zip(streams, decoded, strict=True))
        return [frames[place] if place in frames else self._on_device(sample) for place, sample in enumerate(samples)]

    def _on_device(self, sample: Sample) -> Frames:
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
        # One tensor per stream, since streams differ in size and number of frames.
        pixels = [torch.utils.dlpack.from_dlpack(output[place]) for place in range(len(streams))]
        return [
            dict(zip(stream.frames.tolist(), tensor.unbind(), strict=True))
            for stream, tensor in zip(streams, pixels, strict=True)
        ]

    def _find_rejected(self, streams: dict[int, Stream]) -> dict[int, str]:
        """Return place -> reason of the streams that the decoder rejects on their own. Slow; only after an error."""
        self._pipeline = _build_graph(**self._options)
        rejected = {}
        for place, stream in streams.items():
            try:
                self._run([stream])
            except RuntimeError as error:
                rejected[place] = reason_of(error)
                self._pipeline = _build_graph(**self._options)
        return rejected


def _build_graph(**options: Any) -> Any:
    """Define the graph and build it."""
    pipeline = define_video_graph(**options)
    pipeline.build()
    return pipeline


def define_video_graph(**options: Any) -> Any:
    """Define the graph, which needs no device yet: batch_size, num_threads and device_id are arguments of DALI's."""
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
            affine=False,  # with affinity, the ranks of one machine would pin their threads to the same cores
        )

    return graph()

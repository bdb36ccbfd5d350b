"""Decode single pictures on the host with DALI, as training does; `rhofast verify --deep` uses it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.decode.dali import import_dali, parses


class PictureDecoder:
    """DALI's image decoder by itself, on the CPU: whole pictures, to see whether they can be decoded. Not thread-safe.

    Bytes that do not parse can crash the process from within DALI, so each picture's header is parsed before; after an
    error the pictures of a batch are tried one by one, each in a new pipeline.
    """

    batch = 8  # DALI parses so few in the calling thread

    def __init__(self) -> None:
        """Raises DependencyError where DALI is not installed."""
        self._pipeline = self._build()

    def decode(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8] | None]:
        """RGB u8[H, W, 3] of each encoded picture u8[bytes], at most `batch` of them; None for one that the decoder
        refuses."""
        decoded: list[npt.NDArray[np.uint8] | None] = [None] * len(pictures)
        parsed = [number for number, picture in enumerate(pictures) if parses(picture)]
        try:
            for number, pixels in zip(parsed, self._run([pictures[number] for number in parsed]), strict=True):
                decoded[number] = pixels
        except RuntimeError:
            for number in parsed:
                self._pipeline = self._build()
                with suppress(RuntimeError):
                    (decoded[number],) = self._run([pictures[number]])
            self._pipeline = self._build()
        return decoded

    def _run(self, pictures: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        if not pictures:
            return []
        self._pipeline.feed_input("encoded", pictures)
        (output,) = self._pipeline.run()
        return [np.array(output.at(number)) for number in range(len(pictures))]

    def _build(self) -> Any:
        fn, pipeline_def, types = import_dali()

        @pipeline_def(batch_size=self.batch, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
        def graph() -> Any:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            return fn.decoders.image(encoded, device="cpu", adjust_orientation=False)

        pipeline = graph()
        pipeline.build()
        return pipeline

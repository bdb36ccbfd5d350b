"""Decode single pictures on the host with DALI, like training does, for `rhofast verify --deep`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.decode.dali import import_dali


class PictureDecoder:
    """The image decoder of DALI on the CPU, to check whether whole pictures can be decoded. It is not thread-safe.

    Bytes that are not a picture can crash the process from within DALI, so callers check each picture first
    (`Codec.find_fault`). After an error the pictures of a batch are decoded one by one, each in a new pipeline.

    Attributes:
        batch: Largest number of pictures per call.
    """

    batch = 8  # up to this number DALI parses them in the calling thread

    def __init__(self) -> None:
        """Build the pipeline.

        Raises:
            DependencyError: DALI is not installed.
        """
        self._pipeline = self._build()

    def decode(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8] | None]:
        """Decode at most `batch` encoded pictures, u8[bytes] each.

        Returns:
            RGB u8[H, W, 3] for each picture, or None if the decoder rejects it.
        """
        decoded: list[npt.NDArray[np.uint8] | None] = [None] * len(pictures)
        try:
            decoded[:] = self._run(pictures)
        except RuntimeError:
            for number, picture in enumerate(pictures):
                self._pipeline = self._build()
                with suppress(RuntimeError):
                    (decoded[number],) = self._run([picture])
            self._pipeline = self._build()
        return decoded

    def _run(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        if not pictures:
            return []
        self._pipeline.feed_input("encoded", list(pictures))
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

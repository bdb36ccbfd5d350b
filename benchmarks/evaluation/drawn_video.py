"""Write a video whose frames are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt


def write_video(path: Path, frames: Iterable[npt.NDArray[np.uint8]], *, rate: int) -> None:
    """Write frames u8[H, W, 3] as H.264, nearly without loss.

    Args:
        path: The file, whose suffix says the container.
        frames: The frames, all of one size.
        rate: Frames per second.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())

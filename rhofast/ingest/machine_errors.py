"""Tell the machine's trouble from a video's damage: a full disk or a lost mount must not refuse a video.

Trouble in writing is an OSError, which stops the command. Trouble in reading is an UnreadableError: the source is read
again, and then refused with the words of the system. ffmpeg and PyAV pass the errors of the system on, but use some of
their numbers (EIO, ENOMEM, EINVAL) for damaged files as well. Those say nothing about reading; source.py finds out by
reading the file itself.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

_NEVER_DAMAGE = (errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE, errno.EMFILE, errno.ENODEV, errno.ENOTCONN)
_ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
WRITING = (
    *(*_ONLY_WRITING, *_NEVER_DAMAGE, errno.EIO, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENXIO),
    *(errno.EREMOTEIO, errno.ENOTDIR, errno.EBADF),
)
# Lines of ffmpeg, of versions 4 to 9, on its output.
_OUTPUT = re.compile(
    rb"^\[(out|vost|aost|ost)#|submitting a packet to the muxer|av_interleaved_write_frame|Could not write header|"
    rb"Error (writing trailer|closing file|opening output|muxing a packet)"
)
# Lines between input and output, where no damage leads: there is no memory, or no thread.
_MIDDLE = re.compile(rb"^\[(vf#|fc#|enc|swscaler|swscale|Parsed_|auto_|graph|lib)|[Ff]ilter|[Ee]ncod|thread")
_INPUT = re.compile(rb"^\[in#|Error opening input|Error during demuxing|: ")


class UnreadableError(Exception):
    """A source cannot be read, for a reason that is not in the video.

    Attributes:
        words: What the system or the server says, in one line.
        passing: Whether it may be over soon, so that another attempt makes sense.
    """

    def __init__(self, words: str, passing: bool = True) -> None:
        super().__init__(words, passing)
        self.words, self.passing = words, passing

    def __str__(self) -> str:
        return self.words


class UnwritableError(Exception):
    """What is made of a source cannot be written, for a reason that is not in the video.

    Attributes:
        number: Number of the system's error.
        folder: Where it cannot be written.
    """

    def __init__(self, number: int, folder: str) -> None:
        super().__init__(number, folder)
        self.number, self.folder = number, folder


def check_library_error(error: Exception) -> None:
    """Raise UnreadableError if an error of PyAV comes from the system and never from a damaged file."""
    if isinstance(error, OSError) and error.errno in _NEVER_DAMAGE:
        raise UnreadableError(os.strerror(error.errno)) from None


def check_ffmpeg(messages: bytes, code: int, *, source: Path, out: Path) -> None:
    """Raise what an ffmpeg process says of the machine; return if it says nothing of it.

    Args:
        messages: What it wrote to standard error.
        code: Its exit code; negative for a signal.
        source: The file that it read.
        out: The file that it wrote.

    Raises:
        OSError: `out` could not be written.
        UnreadableError: `source` could not be read, or there was no memory for it.
    """
    if code == -signal.SIGXFSZ:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(out.parent))
    for path in (source, out):  # a file may be named after an error
        messages = messages.replace(os.fsencode(path), b"")
    for line in messages.splitlines():
        wrote = _OUTPUT.search(line) is not None
        for number in WRITING if wrote else _ONLY_WRITING:
            if os.strerror(number).encode() in line:
                raise OSError(number, os.strerror(number), str(out.parent))
        for number in () if wrote or not _INPUT.search(line) else _NEVER_DAMAGE:
            if os.strerror(number).encode() in line:
                raise UnreadableError(os.strerror(number))
        for number in (errno.ENOMEM, errno.EAGAIN) if _MIDDLE.search(line) else ():
            if os.strerror(number).encode() in line:
                raise UnreadableError(os.strerror(number))

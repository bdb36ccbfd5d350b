"""The errors that rhofast raises on purpose.

The command line prints one line for each of them (message, then hint) and exits with code 2. A message names the file,
key or option at fault; a hint is the remedy. Both are one line of printable characters, whatever names and texts they
quote. Wrong arguments of pure functions raise a plain `ValueError`.
"""

import re

from rhofast.display.text import LINE, printable

_SET = re.compile(r"--set (?P<key>(?:clips|augment|data|train)\.[a-z_]+)=(?P<value>[^\s,;)]+)")
_ARGUMENTS = {
    "data.train": "shards",
    "train.batch_size": "batch_size",
    "augment.size": "size",
    **{f"clips.{name}": name for name in ("num_clips", "num_frames", "frame_stride", "fps")},
}
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits: the run is saved; the same command goes on with --resume


class RhofastError(Exception):
    """Base class of all errors of rhofast.

    Attributes:
        message: What is wrong, in one line.
        hint: What the user can do, in one line; None if the message suffices.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Create an error from its message and hint."""
        self.message = printable(message, LINE)
        self.hint = None if hint is None else printable(hint, LINE)
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return message and hint as a caller in Python needs them; the command line prints `message` and `hint`."""
        return f"{self.message} ({in_python(self.hint)})" if self.hint else self.message


def in_python(hint: str) -> str:
    """Return a hint with options of the command line as arguments of `rhofast.clips` and `rhofast.eval_clips`.

    Args:
        hint: A text such as "choose fewer: --set data.lanes=4".

    Returns:
        The text with `options={"data.lanes": 4}`, or the argument's name where an option has an argument of its own.
    """
    return _SET.sub(lambda found: _argument(found["key"], found["value"]), hint)


def _argument(key: str, value: str) -> str:
    known = {"true": "True", "false": "False", "null": "None"}
    is_text = re.fullmatch(r"[a-z_]+", value) is not None and value not in known
    shown = f'"{value}"' if is_text else known.get(value, value)
    return f"{_ARGUMENTS[key]}={shown}" if key in _ARGUMENTS else f'options={{"{key}": {shown}}}'


class ConfigError(RhofastError):
    """A config has an unknown key, a wrong type, a value out of range or options that exclude each other."""


class IngestError(RhofastError):
    """The sources of a shard set cannot be read, or shards cannot be written; finished shards remain usable."""


class StoreError(RhofastError):
    """An object store or a web server cannot be reached, or refuses access."""


class ShardError(RhofastError):
    """A shard set cannot be used."""


class ShardFormatError(ShardError):
    """A file of a shard set has another format version, another digest or another size."""


class ShardMissingError(ShardError):
    """There is no shard set, or a file that `dataset.json` lists is missing."""


class MachineError(RhofastError):
    """The machine or its storage refuses what any data would need: descriptors, memory, space, a mount."""


class SampleError(RhofastError):
    """One sample cannot be used; the error carries its address.

    Attributes:
        reason: What is wrong, without the address.
        shard: File name of the shard.
        key: Key of the sample.
        offset: Position in the shard, in bytes.
    """

    def __init__(self, message: str, *, shard: str, key: str, offset: int, hint: str | None = None) -> None:
        """Create an error with the address of a sample.

        Args:
            message: What is wrong, in one line.
            shard: File name of the shard.
            key: Key of the sample.
            offset: Position in the shard, in bytes.
            hint: What the user can do, in one line.
        """
        super().__init__(f"{message} [{shard}, key {key!r}, byte {offset}]", hint=hint)
        self.reason = message
        self.shard = shard
        self.key = key
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:  # pickle cannot pass keyword-only arguments by itself
        return (_rebuild_sample_error, (type(self), self.reason, self.shard, self.key, self.offset, self.hint))


def _rebuild_sample_error(
    kind: "type[SampleError]", reason: str, shard: str, key: str, offset: int, hint: str | None
) -> "SampleError":
    return kind(reason, shard=shard, key=key, offset=offset, hint=hint)


class DecodeError(SampleError):
    """The decoder rejected bytes whose checksum was right."""


class UndecodableError(RhofastError):
    """The decoder rejected some samples of a batch.

    Attributes:
        reasons: Place in the batch -> reason, in one line.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        """Create an error from the reason for each place in the batch."""
        super().__init__("; ".join(f"sample {place} of the batch: {reason}" for place, reason in reasons.items()))
        self.reasons = reasons


class TooManyBadSamplesError(SampleError):
    """The share of bad samples exceeds the limit of the run; the address is that of the last one."""


class ResumeError(RhofastError):
    """A checkpoint does not fit the run; the message has one sentence per mismatch."""


class SaveError(RhofastError):
    """The last checkpoint of a run could not be written; older ones remain."""


class RankLostError(RhofastError):
    """Another process of the run ended or did not answer in time."""


class NotFiniteError(RhofastError):
    """Losses or gradients were not finite in too many successive steps, or weights or statistics no longer are."""


class DependencyError(RhofastError):
    """A package or program is missing; the hint is the command that installs it."""

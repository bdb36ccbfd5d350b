"""Every error that rhofast raises on purpose.

The command line prints one line for each of them (message, then hint) and exits with code 2. A message names the
file, key or option at fault; a hint says what to do. Wrong arguments of pure functions are plain `ValueError`s.
"""


class RhofastError(Exception):
    """The root. `hint` is what the user can do about it, or None where the message says it all."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(RhofastError):
    """An unknown key, a wrong type, a value out of range or a combination that cannot work; raised before work."""


class IngestError(RhofastError):
    """The source of a shard set cannot be read or the shards cannot be written; finished shards stay usable."""


class ShardError(RhofastError):
    """Something is wrong with a shard set as a whole."""


class ShardFormatError(ShardError):
    """Another format version, a digest that does not match, or a file that was cut short."""


class ShardMissingError(ShardError):
    """A file that `dataset.json` names is not there, or there is no shard set at all."""


class SampleError(RhofastError):
    """One sample cannot be used. Carries its address, so that it can be found and looked at."""

    def __init__(self, message: str, *, shard: str, key: str, offset: int, hint: str | None = None) -> None:
        super().__init__(f"{message} [{shard}, key {key!r}, byte {offset}]", hint=hint)
        self.reason = message
        self.shard = shard
        self.key = key
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments, and yet crosses process boundaries
        return (_rebuild_sample_error, (type(self), self.reason, self.shard, self.key, self.offset, self.hint))


def _rebuild_sample_error(
    kind: "type[SampleError]", reason: str, shard: str, key: str, offset: int, hint: str | None
) -> "SampleError":
    return kind(reason, shard=shard, key=key, offset=offset, hint=hint)


class DecodeError(SampleError):
    """The decoder refused bytes whose checksum was right."""


class UndecodableError(RhofastError):
    """The decoder refused some samples of a batch. reasons: place in the batch -> why, in one line."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__("; ".join(f"sample {place} of the batch: {reason}" for place, reason in reasons.items()))
        self.reasons = reasons


class TooManyBadSamplesError(SampleError):
    """The share of bad samples passed the limit of the run. The address is that of the last one."""


class ResumeError(RhofastError):
    """A checkpoint does not fit this run; one sentence for each mismatch."""


class SaveError(RhofastError):
    """The checkpoint that a run ends with could not be written; older ones stay."""


class RankLostError(RhofastError):
    """Another process of the run is gone, or did not answer in time."""


class NotFiniteError(RhofastError):
    """Losses or gradients were not finite in too many steps in succession, or what they touched no longer is."""


class DependencyError(RhofastError):
    """A package or program is missing; the hint is the command that installs it."""

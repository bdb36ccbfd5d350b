"""Storage codecs: how a video is stored in a shard. To add one, write a module here and add its class to CODECS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhofast.config.section import parse_section
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.errors import ConfigError

CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (JpegCodec, H264Codec, HevcCodec, RemuxCodec, CopyCodec)
}


def build_codec(settings: Mapping[str, Any]) -> Codec:
    """Build the codec of `{"name": ..., setting: value, ...}`.

    Raises:
        ConfigError: The name or a setting is unknown, or a value is out of range.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in CODECS:
        raise ConfigError(f"codec={repr(name)[:80]} is not known", hint=f"choose one of {', '.join(CODECS)}")
    return parse_section(CODECS[name], options, where=f"codec {name}")


def build_codecs(names: Sequence[str], options: Mapping[str, Any]) -> list[Codec]:
    """Build several codecs, each with those of the options that it knows.

    Args:
        names: Names of codecs.
        options: Settings and their values.

    Returns:
        One codec per name.

    Raises:
        ConfigError: A name is unknown, a value is out of range, or none of the codecs knows an option.
    """

    def fits(name: str, option: str) -> bool:
        return name not in CODECS or option in CODECS[name].model_fields

    unknown = [option for option in options if not any(fits(name, option) for name in names)]
    return [
        build_codec({"name": name, **{key: options[key] for key in options if key in unknown or fits(name, key)}})
        for name in names
    ]


def codec_settings(codec: Codec) -> dict[str, Any]:
    """Return the mapping from which `build_codec` builds the codec again."""
    return {"name": codec.name, **codec.model_dump()}

"""Small shard sets with one thing wrong in them, whose digests and sizes are right again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.format.index import SCHEMA
from tests.fuzz.mutations import NAMES, NUMBERS, Rng, choose, mutate_bytes, mutate_json
from tests.helpers.shards import STREAMS, encode_mjpeg, encode_stream, frame_pixels, write_shards

CODECS = ("jpeg", "jpeg", "h264", "copy", "remux")
_STREAMS = {**STREAMS, "remux": RemuxCodec()}
FRAMES, VIDEOS = 12, 4

SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 40000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXTINF:10,\nfile:///etc/passwd\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\nfile 'http://127.0.0.1:9/a.mp4'\n"


@cache
def honest(codec: str) -> Path:
    """A set of one shard, which is deleted with the process."""
    root = Path(_folder().name) / codec
    videos = [[frame_pixels(video, frame) for frame in range(FRAMES)] for video in range(VIDEOS)]
    scratch = Path(_folder().name) / "video.mp4"
    if codec == "jpeg":
        members = [encode_mjpeg(frames) for frames in videos]
        write_shards(root, members, labels=[0, 1, 2, 0])
    else:
        members = [encode_stream(frames, _STREAMS[codec], scratch) for frames in videos]
        write_shards(root, members, labels=[0, 1, 2, 0], codec=_STREAMS[codec])
    return root


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rhofast-fuzz.")


def scratch_folder() -> str:
    """A folder that is deleted with the process."""
    return _folder().name


def copy_of(codec: str, folder: Path) -> Path:
    return Path(shutil.copytree(honest(codec), folder / "set"))


def seal(root: Path) -> None:
    """Make `dataset.json` say what the files are."""
    path = root / "dataset.json"
    info = json.loads(path.read_text())
    for shard in info["shards"]:
        for suffix, size, digest in (("tar", "bytes", "tar_sha256"), ("arrow", "index_bytes", "index_sha256")):
            content = (root / f"{shard['name']}.{suffix}").read_bytes()
            shard |= {size: len(content), digest: hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(info))


# ---- the index ----


def hostile_index(rng: Rng, folder: Path) -> Path:
    """A set whose index is wrong in some way and has the right digest."""
    root = copy_of(choose(rng, CODECS), folder)
    path = root / "shard-000000.arrow"
    kind = rng.random()
    if kind < 0.55:
        _rewrite(rng, path, _spoiled_columns)
    elif kind < 0.7:
        _rewrite(rng, path, _other_table)
    elif kind < 0.85:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    else:
        content = bytearray(path.read_bytes())
        width = int(choose(rng, (4, 8)))
        at = int(rng.integers(len(content) // width)) * width
        value = int(choose(rng, [number for number in NUMBERS if isinstance(number, int) and abs(number) < 2**63]))
        content[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
        path.write_bytes(content)
    seal(root)
    return root


Columns = dict[str, list[Any]]


def _rewrite(rng: Rng, path: Path, change: Callable[[Rng, Columns], tuple[pa.Table, dict[str, Any]]]) -> None:
    columns = pa.ipc.open_file(path.read_bytes()).read_all().to_pydict()
    table, options = change(rng, columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    path.write_bytes(sink.getvalue().to_pybytes())


def _spoiled_columns(rng: Rng, columns: Columns) -> tuple[pa.Table, dict[str, Any]]:
    """The right schema, and one to three wrong values."""
    arrays = {}
    spoiled = {choose(rng, SCHEMA.names) for _ in range(int(rng.integers(1, 4)))}
    for field in SCHEMA:
        values = columns[field.name]
        for _ in range(20):
            changed = _spoil(rng, field, values) if field.name in spoiled else values
            try:
                arrays[field.name] = pa.array(changed, type=field.type)
                break
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                continue
        else:
            arrays[field.name] = pa.array(values, type=field.type)
    rows = min(map(len, arrays.values()))
    return pa.Table.from_arrays([array[:rows] for array in arrays.values()], schema=SCHEMA), {}


def _spoil(rng: Rng, field: pa.Field, values: list[Any]) -> list[Any]:
    values = [list(value) if isinstance(value, list) else value for value in values]
    row = int(rng.integers(len(values)))
    if rng.random() < 0.1:
        values[row] = None
    elif isinstance(values[row], list) and values[row]:
        units, kind = values[row], int(rng.integers(4))
        unit = int(rng.integers(len(units)))
        if kind == 0:
            del units[unit:]
        elif kind == 1:
            units.extend(units * int(choose(rng, (1, 3, 1000))))
        else:
            units[unit] = choose(
                rng, (None, *NUMBERS, units[unit] + 1, units[unit] - 1, 10 * units[unit], -units[unit])
            )
    elif isinstance(values[row], str):
        values[row] = choose(rng, [name for name in NAMES if not any("\ud800" <= one <= "\udfff" for one in name)])
    elif isinstance(values[row], bytes):
        values[row] = rng.bytes(16)
    else:
        values[row] = choose(rng, (*NUMBERS, 64, 48, (values[row] or 1) * 2))
    return values


def _other_table(rng: Rng, columns: Columns) -> tuple[pa.Table, dict[str, Any]]:
    """Another schema, another number of rows or batches, or compressed buffers."""
    table = pa.table(columns, schema=SCHEMA)
    name = choose(rng, SCHEMA.names)
    place = SCHEMA.get_field_index(name)
    kind = int(rng.integers(8))
    if kind == 0:
        return table.drop_columns([name]), {}
    if kind == 1:
        return table.append_column("more", pa.array(range(len(table)))), {}
    if kind == 2:
        return table.set_column(place, name, pa.array([choose(rng, NAMES[:20])] * len(table))), {}
    if kind == 3:
        return table.set_column(place, pa.field(name, pa.null()), pa.nulls(len(table))), {}
    if kind == 4:
        return table.slice(0, int(rng.integers(len(table)))), {}
    if kind == 5:
        return pa.concat_tables([table, table]), {}
    if kind == 6:
        return pa.concat_tables([table] * int(choose(rng, (2, 500)))).combine_chunks(), {"compression": "zstd"}
    return table, {"compression": str(choose(rng, ("lz4", "zstd")))}


# ---- the pictures and streams ----


def hostile_content(rng: Rng, folder: Path) -> Path:
    """A set whose members are not what the codec stores, with right checksums."""
    codec = choose(rng, CODECS)
    root = copy_of(codec, folder)
    tar, arrow = root / "shard-000000.tar", root / "shard-000000.arrow"
    content = bytearray(tar.read_bytes())
    columns = pa.ipc.open_file(arrow.read_bytes()).read_all().to_pydict()
    row = int(rng.integers(VIDEOS))
    first = columns["offset"][row]
    for unit in {int(rng.integers(len(columns["unit_size"][row]))) for _ in range(4)}:
        size = columns["unit_size"][row][unit]
        begin = first + columns["begin"][row] + sum(columns["unit_size"][row][:unit])
        content[begin : begin + size] = _other_bytes(rng, codec, bytes(content[begin : begin + size]))[:size].ljust(
            size
        )
    for place, sizes in enumerate(columns["unit_size"]):
        begin = columns["offset"][place] + columns["begin"][place]
        for unit, size in enumerate(sizes):
            columns["unit_crc"][place][unit] = zlib.crc32(content[begin : begin + size])
            begin += size
    tar.write_bytes(content)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
    arrow.write_bytes(sink.getvalue().to_pybytes())
    seal(root)
    return root


def _other_bytes(rng: Rng, codec: str, content: bytes) -> bytes:
    if rng.random() < 0.5:
        return mutate_bytes(rng, content[:400]) + content[400:] if rng.random() < 0.7 else mutate_bytes(rng, content)
    if codec == "jpeg" and rng.random() < 0.8:
        picture = _picture(str(choose(rng, ("PNG", "TIFF", "JPEG2000", "BMP", "GIF", "WEBP", "JPEG"))))
        return picture[: len(content) - 2] + b"\xff\xd9" if rng.random() < 0.3 else picture
    return bytes(choose(rng, (SDP, HLS, CONCAT, b"", b"\xff\xd8\xff\xd9", b"RIFF" + bytes(40), rng.bytes(500))))


@cache
def _picture(form: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(frame_pixels(1, 1, 4096, 4096)).save(sink, form)
    return sink.getvalue()


# ---- the files ----


def hostile_description(rng: Rng, folder: Path) -> Path:
    """A set with another `dataset.json`."""
    root = copy_of("jpeg", folder)
    path = root / "dataset.json"
    path.write_bytes(mutate_json(rng, json.loads(path.read_text())))
    return root


def hostile_files(rng: Rng, folder: Path) -> Path:
    """A set of which one file is no file."""
    root = copy_of("jpeg", folder)
    path = root / str(choose(rng, ("dataset.json", "shard-000000.tar", "shard-000000.arrow")))
    size = path.stat().st_size
    kind = int(rng.integers(6))
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(str(choose(rng, ("/dev/zero", "/dev/null", "/dev/tty", "nowhere", path.name))))
    elif kind == 3:
        path.touch()
        # What is read as a whole must not be large; a tar may be, and is read to its end by a full check.
        large = 1 << 28 if path.suffix == ".tar" else 1 << 33
        os.truncate(path, int(choose(rng, (0, 1, size, large))))
    elif kind == 4:
        path.write_bytes(rng.bytes(size))
    if path.is_file() and path.suffix and rng.random() < 0.5 and (root / "dataset.json").is_file():
        info = json.loads((root / "dataset.json").read_bytes() or b"{}") if path.name != "dataset.json" else {}
        for shard in info.get("shards", ()):
            shard["bytes" if path.suffix == ".tar" else "index_bytes"] = path.stat().st_size
        if info:
            (root / "dataset.json").write_text(json.dumps(info))
    return root

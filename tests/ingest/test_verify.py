"""Every promise of the format, broken one at a time in a shard of its own; each is found, alone, with its address."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.dataset_json import DatasetInfo, index_facts
from rhofast.data.format.index import IndexRow
from rhofast.data.format.index_writer import write_index
from rhofast.data.types import Units
from rhofast.errors import ShardFormatError
from rhofast.ingest import verify, verify_shard
from rhofast.ingest.verify import verify_shards
from rhofast.ingest.verify_shard import ShardReport, VerifyJob, check_shard
from rhofast.ingest.writer import NewSample, TarMember, tar_members, write_shard
from tests.helpers.shards import FPS, encode_mjpeg, frame_pixels

FRAMES, GOP = 20, 8
SHARDS = 22


def encode_h264(frames: list[npt.NDArray[np.uint8]]) -> bytes:
    """A fragmented MP4 of closed groups of GOP frames, as the h264 codec stores it."""
    return encode(
        frames,
        "mp4",
        "libx264",
        {"g": str(GOP), "bf": "0", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0"},
        {"movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer"},
    )


def encode_mpeg4(frames: list[npt.NDArray[np.uint8]]) -> bytes:
    return encode(frames, "matroska", "mpeg4", {"qmin": "2", "qmax": "2"}, {})


def encode(
    frames: list[npt.NDArray[np.uint8]], container: str, codec: str, options: dict[str, str], flags: dict[str, str]
) -> bytes:
    sink = BytesIO()
    with av.open(sink, "w", format=container, options=flags) as output:
        stream = output.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return sink.getvalue()


def write_set(root: Path, codec: Codec, members: Sequence[bytes], suffix: str = "mp4", per_shard: int = 1) -> ShardSet:
    """A whole set of ready members, as ingest writes it."""
    (root / "scratch").mkdir(parents=True)
    shards = []
    for first in range(0, len(members), per_shard):
        samples = []
        for number in range(first, min(first + per_shard, len(members))):
            content, file = members[number], root / "scratch" / f"{number}"
            file.write_bytes(content)
            member = codec.index_member(BytesIO(content))
            digest = hashlib.blake2b(content, digest_size=16).digest()
            metadata = {
                "label": number % 2,
                "label_name": f"class {number % 2}",
                "labels": [],
                "source_digest": digest.hex(),
                "codec": codec.name,
                "fps": float(member.fps),
                "frames": member.num_frames,
                "width": member.width,
                "height": member.height,
                "pixel_aspect": 1.0,
            }
            samples.append(
                NewSample(
                    key=f"v{number}",
                    label=number % 2,
                    source_digest=digest,
                    file=file,
                    suffix=suffix,
                    member=member,
                    metadata=metadata,
                )
            )
        shards.append(write_shard(root, f"shard-{first // per_shard:06d}", samples, scratch=root / "scratch"))
    shutil.rmtree(root / "scratch")
    info = DatasetInfo(
        name="tiny",
        split="train",
        codecs=[codec_settings(codec)],
        classes=["class 0", "class 1"],
        shards=shards,
        refused={"empty": 1},
        build="",
    )
    (root / "refused.jsonl").write_text(json.dumps({"key": "x", "path": "x", "reason": "empty", "detail": ""}) + "\n")
    (root / "sizes.json").write_text(json.dumps({shard.tar: shard.samples for shard in info.shards}))
    (root / "dataset.json").write_text(json.dumps(info.model_dump()))
    return open_folder(root)


def pictures(video: int) -> list[npt.NDArray[np.uint8]]:
    return [frame_pixels(video, frame) for frame in range(FRAMES)]


SETS: dict[str, tuple[Codec, Callable[..., bytes], str]] = {
    "jpeg": (JpegCodec(), encode_mjpeg, "mp4"),
    "h264": (H264Codec(gop=GOP), encode_h264, "mp4"),
    "copy": (CopyCodec(), encode_mpeg4, "mkv"),
}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undamaged set of each codec: SHARDS shards of one sample."""
    folder = tmp_path_factory.mktemp("verify")
    for name, (codec, encoder, suffix) in SETS.items():
        write_set(folder / name, codec, [encoder(pictures(video)) for video in range(SHARDS)], suffix)
    return {name: folder / name for name in SETS}


# ---- damage, each to the shard of its number ----

Injury = Callable[[Path, int], None]


def patch(root: Path, number: int, old: bytes, new: bytes) -> None:
    path = root / f"shard-{number:06d}.tar"
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


def row_of(root: Path, number: int) -> IndexRow:
    return open_folder(root, check_files=False).index(number).row(0)


def overwrite(root: Path, number: int, unit: int, offset: int, content: bytes) -> None:
    """Bytes of a unit; of the member's last one where `unit` is -1."""
    row = row_of(root, number)
    with (root / f"shard-{number:06d}.tar").open("r+b") as file:
        file.seek(row.offset + int(row.units.offset[unit]) + offset)
        file.write(content)


def reseal(root: Path, number: int, change: Callable[[IndexRow], IndexRow] = lambda row: row) -> None:
    """Make checksums and digests right again, as if the shard had been written like this."""
    tar, arrow = root / f"shard-{number:06d}.tar", root / f"shard-{number:06d}.arrow"
    row = change(row_of(root, number))
    content = tar.read_bytes()[row.offset : row.offset + row.size]
    crcs = [
        np.uint32(zlib.crc32(content[offset : offset + size]))
        for offset, size in zip(row.units.offset.tolist(), row.units.size.tolist(), strict=True)
    ]
    row = replace(row, units=replace(row.units, crc=np.array(crcs, dtype=np.uint32)))
    digest = write_index(arrow, [row], {})
    facts = {
        "tar_sha256": hashlib.sha256(tar.read_bytes()).hexdigest(),
        "index_sha256": digest,
        "index_bytes": arrow.stat().st_size,
        "bytes": tar.stat().st_size,
    }
    describe(root, number, facts)


def describe(root: Path, number: int, facts: dict[str, Any]) -> None:
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][number] |= facts
    (root / "dataset.json").write_text(json.dumps(info))


def with_units(**changes: Callable[[Units], npt.NDArray[Any]]) -> Callable[[IndexRow], IndexRow]:
    return lambda row: replace(row, units=replace(row.units, **{k: change(row.units) for k, change in changes.items()}))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def changed(values: npt.NDArray[Any], unit: int, by: float) -> npt.NDArray[Any]:
    values = values.copy()
    values[unit] += values.dtype.type(by)
    return values


def earlier_end(units: Units) -> npt.NDArray[np.int32]:
    """The sizes, if unit 2 ended, and unit 3 began, 4 bytes earlier."""
    return changed(changed(units.size, 2, -4), 3, 4)


def earlier_begin(units: Units) -> npt.NDArray[np.int64]:
    """The positions that belong to `earlier_end`."""
    return changed(units.offset, 3, -4)


UNIT = {"jpeg": 5, "h264": 2, "copy": 0}
UNIT_NAME = {"jpeg": "frame 5", "h264": "frames 8-15", "copy": f"frames 0-{FRAMES - 1}"}
DIGEST = r"shard-N.tar: its SHA-256 digest differs from the one in dataset.json"
INDEX = r"shard-N.arrow: "
SAMPLE = r"shard-N.tar, key vK: "
MEMBER = r"shard-N.tar, key vK, byte M: "
NOTE = r"shard-N.tar, key vK, byte 512: "


def shallow(codec: str) -> list[tuple[Injury, list[str]]]:
    """Injuries, and what is said of each. N, K, M and U stand for the shard, its sample, and the first bytes of its
    member and of the unit UNIT[codec]."""
    unit, name = UNIT[codec], UNIT_NAME[codec]
    return [
        (lambda root, n: None, []),
        (
            lambda root, n: overwrite(root, n, unit, 40, b"\0\1\2\3"),
            [DIGEST, rf"shard-N.tar, key vK, byte U: {name}: checksum mismatch"],
        ),
        (
            lambda root, n: os.truncate(root / f"shard-{n:06d}.tar", 1600),
            [r"shard-N.tar: is 1600 bytes long; .*", r"shard-N.tar: is not a complete tar file: .*"],
        ),
        (lambda root, n: longer(root / f"shard-{n:06d}.tar"), [r"shard-N.tar: is \d+ bytes long; .*"]),
        (lambda root, n: (root / f"shard-{n:06d}.tar").unlink(), [r"shard-N.tar: no such file.*"]),
        (lambda root, n: flip_bit(root / f"shard-{n:06d}.arrow"), [rf"{INDEX}its digest differs from.*"]),
        (lambda root, n: (root / f"shard-{n:06d}.arrow").unlink(), [rf"{INDEX}no such file.*"]),
        (
            lambda root, n: patch(root, n, b'"frames": 20', b'"frames": 21'),
            [DIGEST, rf"{NOTE}KEY.json says frames=21, the index 20"],
        ),
        (
            lambda root, n: patch(root, n, b'{"codec"', b'["codec"'),
            [DIGEST, rf"{NOTE}KEY.json: not JSON at column 9: .*"],
        ),
        (
            lambda root, n: overwrite_note(root, n, b"[1, 2]"),
            [DIGEST, rf"{NOTE}KEY.json: .*: must be an object"],
        ),
        (
            lambda root, n: patch(root, n, b'"label_name": "class', b'"label_name": "glass'),
            [DIGEST, rf"{NOTE}KEY.json says label_name='glass [01]', the index 'class [01]'"],
        ),
        (
            add_sample,
            [
                rf"{SAMPLE[:-4]}x: the sample is in the tar but not in the index",
                r"shard-N.idx: does not match the tar .*",
            ],
        ),
        (
            lambda root, n: (root / f"shard-{n:06d}.idx").write_text("v1.2 0\n"),
            [r"shard-N.idx: does not match the tar .*"],
        ),
        (
            lambda root, n: describe(root, n, {"frames": 7}),
            [rf"{INDEX}1 samples, 20 frames, 1.67 s; dataset.json disagrees"],
        ),
        (
            lambda root, n: reseal(root, n, lambda row: replace(row, label=2)),
            [rf"{INDEX}row 0 \(key 'vK'\): its label is not below the number of classes, 2"],
        ),
        (
            lambda root, n: reseal(root, n, lambda row: replace(row, offset=row.offset + 1)),
            [rf"{SAMPLE}the tar has no such member at the position in the index"],
        ),
        (
            lambda root, n: reseal(root, n, with_units(size=lambda units: changed(units.size, -1, 10_000))),
            [rf"{INDEX}row 0 \(key 'vK'\): its units extend beyond the member"],
        ),
        (
            lambda root, n: reseal(root, n, with_units(frame=lambda units: units.frame + np.int32(1))),
            [rf"{INDEX}row 0 \(key 'vK'\): its units do not cover its frames"],
        ),
    ]


def add_sample(root: Path, number: int) -> None:
    with tarfile.open(root / f"shard-{number:06d}.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("x.json"))
    reseal(root, number)


def overwrite_note(root: Path, number: int, text: bytes) -> None:
    path = root / f"shard-{number:06d}.tar"
    content = path.read_bytes()
    size = content[512:1024].rstrip(b"\0").__len__()
    path.write_bytes(content[:512] + text.ljust(size) + content[512 + size :])


def bad_tables(root: Path, number: int) -> None:
    """A Huffman table in frame 5 that cannot be: only a decoder finds out."""
    row = row_of(root, number)
    with (root / f"shard-{number:06d}.tar").open("rb") as file:
        file.seek(row.offset + int(row.units.offset[5]))
        table = file.read(int(row.units.size[5])).index(b"\xff\xc4")
    overwrite(root, number, 5, table + 5, b"\xff" * 16)
    reseal(root, number)


def resealed(unit: int, offset: int, content: bytes) -> Injury:
    def injure(root: Path, number: int) -> None:
        overwrite(root, number, unit, offset, content)
        reseal(root, number)

    return injure


DEEP: dict[str, list[tuple[Injury, list[str]]]] = {
    "jpeg": [
        (resealed(5, 0, b"\0\0"), [r"shard-N.tar, key vK, byte U: frame 5: not a whole JPEG"]),
        (resealed(5, 2, b"\0" * 30), [r"shard-N.tar, key vK, byte U: frame 5: not a baseline 4:2:0 JPEG"]),
        (bad_tables, [r"shard-N.tar, key vK, byte U: frame 5: the decoder rejects it"]),
        (
            lambda root, n: reseal(root, n, with_units(rgb=lambda units: changed(units.rgb, 1, 3))),
            [r"shard-N.tar, key vK, byte \d+: frame 16: its mean color differs from the stored one"],
        ),
    ],
    "h264": [
        (resealed(2, 130, b"\xff" * 60), [r"shard-N.tar, key vK, byte U: frames 8-15: the stored member .*"]),
        (
            lambda root, n: reseal(root, n, with_units(rgb=lambda units: changed(units.rgb, 2, 3))),
            [r"shard-N.tar, key vK, byte U: frames 8-15: its mean color differs from the stored one"],
        ),
        (
            lambda root, n: reseal(root, n, with_units(size=earlier_end, offset=earlier_begin)),
            [r"shard-N.tar, key vK, byte U: frames 8-15: the container has it at another position.*"],
        ),
        (
            lambda root, n: reseal(root, n, lambda row: replace(row, height=96)),
            [
                rf"{NOTE}KEY.json says height=48, the index 96",
                rf"{MEMBER}holds 20 frames of 64x48 at 12 fps; the index disagrees",
            ],
        ),
    ],
    "copy": [
        (resealed(0, 0, b"\0" * 1000), [rf"{MEMBER}the stored member cannot be opened: .*"]),
        (
            lambda root, n: reseal(root, n, with_units(rgb=lambda units: changed(units.rgb, 0, 3))),
            [rf"{MEMBER}frames 0-19: its mean color differs from the stored one"],
        ),
        (
            lambda root, n: reseal(root, n, lambda row: replace(row, fps=6.0)),
            [
                rf"{INDEX}1 samples, 20 frames, 3.33 s; dataset.json disagrees",
                rf"{NOTE}KEY.json says fps=12.0, the index 6.0",
                rf"{MEMBER}holds 20 frames of 64x48 at 12 fps; the index disagrees",
            ],
        ),
    ],
}


def injure(whole: Path, root: Path, injuries: list[tuple[Injury, list[str]]], codec: str) -> list[str]:
    """A damaged copy of a set at `root`; returns what must be said of it, as regular expressions."""
    shutil.copytree(whole, root)
    expected = []
    for number, (injury, said) in enumerate(injuries):
        row = row_of(root, number)
        addresses = {
            "shard-N": f"shard-{number:06d}",
            "vK": f"v{number}",
            "byte M": f"byte {row.offset}",
            "byte U": f"byte {row.offset + int(row.units.offset[UNIT[codec]])}",
        }
        del row  # it is mapped from the file that is about to change
        injury(root, number)
        for line in said:
            for name, address in addresses.items():
                line = line.replace(name, address)
            expected.append(line)
    return expected


def said(root: Path, **options: Any) -> list[str]:
    return [str(problem) for problem in verify_shards(open_folder(root, check_files=False), **options)]


def check(found: list[str], expected: list[str]) -> None:
    wrong = [(line, pattern) for line, pattern in zip(found, expected, strict=False) if not re.fullmatch(pattern, line)]
    assert not wrong and len(found) == len(expected), "\n".join(found)


@pytest.mark.parametrize("codec", SETS)
def test_every_injected_damage_is_found_with_its_address_and_nothing_else_is(
    codec: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    injuries = [*shallow(codec), *DEEP[codec]]
    assert len(injuries) <= SHARDS
    root = tmp_path / "set"
    expected = injure(whole[codec], root, injuries, codec)
    found = said(root, deep=True, workers=1)
    check(found, expected)
    if codec == "jpeg":
        assert said(root, deep=True, workers=2) == found


def test_without_deep_nothing_is_decoded(whole: dict[str, Path], tmp_path: Path) -> None:
    injure(whole["jpeg"], tmp_path / "set", DEEP["jpeg"], "jpeg")
    seen: list[tuple[int, int]] = []
    assert not said(tmp_path / "set", on_progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (SHARDS, SHARDS) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_headers_of_a_tar_are_read_once(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> Iterator[TarMember]:
        read.append(path)
        return tar_members(path)

    monkeypatch.setattr(verify_shard, "tar_members", counted)
    opened = open_folder(whole["jpeg"])
    for number, shard in enumerate(opened.info.shards[:2]):
        (tmp_path / "set").mkdir(exist_ok=True)
        for path in whole["jpeg"].glob(f"{shard.name}.*"):
            if path.suffix != ".arrow" or number == 0:  # the idx is compared without an index, too
                shutil.copy(path, tmp_path / "set")
        (tmp_path / "set" / f"{shard.name}.idx").write_text("v1.2 0\n")
        facts = index_facts(shard, opened.info)
        job = VerifyJob(
            number=number,
            root=tmp_path / "set",
            shard=shard,
            facts=facts,
            classes=tuple(opened.info.classes),
            deep=False,
            marker=tmp_path / "marker",
        )
        assert any("wds2idx" in problem.what for problem in check_shard(job).problems)
    assert [path.name for path in read] == [shard.tar for shard in opened.info.shards[:2]]


def test_what_lies_beside_the_shards(whole: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "set"
    two = [encode_mjpeg(pictures(video)) for video in range(2)]
    write_set(root, JpegCodec(), two)
    shutil.copyfile(root / "shard-000000.tar", root / "shard-000001.tar")  # the same key twice
    shutil.copyfile(root / "shard-000000.arrow", root / "shard-000001.arrow")
    shutil.copyfile(root / "shard-000000.idx", root / "shard-000001.idx")
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][1] = {**info["shards"][0], "name": "shard-000001"}
    (root / "dataset.json").write_text(json.dumps(info))
    (root / "sizes.json").write_text("{}")
    (root / "refused.jsonl").write_text("[]\n")
    (root / ".a-scratch.tmp").mkdir()
    (root / ".job-000003.jsonl").touch()
    (root / "shard-000009.tar").touch()
    (root / "shard-000000.tar.bak").touch()
    assert said(root) == [
        "shard-000001.arrow, key v0: the same key occurs in shard-000000",
        "sizes.json: does not match the samples per shard in dataset.json",
        "refused.jsonl: does not match the 1 refused sources in dataset.json",
        ".a-scratch.tmp: left over from an interrupted run: run `rhofast shard` again with the same arguments",
        ".job-000003.jsonl: left over from an interrupted run: run `rhofast shard` again with the same arguments",
        "shard-000000.tar.bak: not listed in dataset.json",
        "shard-000009.tar: not listed in dataset.json",
    ]


def test_an_unknown_codec_is_one_line(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["jpeg"], tmp_path / "set")
    info = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**info, "codecs": [{"name": "gif"}]}))
    with pytest.raises(ShardFormatError, match=r"dataset\.json: codec='gif' is not known"):
        said(root)


# ---- a process that dies ----


def dies_of_v1(job: VerifyJob) -> ShardReport:
    if job.deep and job.number == 1:
        job.marker.write_text("v1 1536")
        os._exit(11)
    return check_shard(job)


def dies_once(job: VerifyJob) -> ShardReport:
    flag = job.root / "died"
    if job.number == 1 and not flag.exists():
        flag.touch()
        job.marker.write_text("")
        os._exit(11)
    return check_shard(job)


def dies_always(job: VerifyJob) -> ShardReport:
    job.marker.write_text("")
    os._exit(11)


def test_a_decoder_that_dies_is_a_problem_with_an_address_and_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    write_set(root, CopyCodec(), [encode_mpeg4(pictures(video)) for video in range(3)], "mkv")
    overwrite(root, 2, 0, 40, b"\0\1\2\3")
    monkeypatch.setattr(verify, "check_shard", dies_of_v1)
    found = said(root, deep=True, workers=1)
    assert found[0].startswith("shard-000001.tar, key v1, byte 1536: the decoder crashed on this sample")
    assert [line.partition(":")[0] for line in found[1:]] == ["shard-000002.tar", "shard-000002.tar, key v2, byte 1536"]
    monkeypatch.setattr(verify, "check_shard", dies_once)
    assert said(root, workers=1) == found[1:]


def test_a_shard_whose_check_dies_without_decoding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    write_set(root, CopyCodec(), [encode_mpeg4(pictures(0))], "mkv")
    monkeypatch.setattr(verify, "check_shard", dies_always)
    assert said(root) == ["shard-000000.tar: the process that checked this shard died"]


# ---- the decoder ----


def test_the_picture_decoder_decodes_exactly_and_refuses_alone_what_is_damaged() -> None:
    from rhofast.data.decode.picture_decoder import PictureDecoder

    rng = np.random.default_rng(0)
    sinks = [BytesIO() for _ in range(PictureDecoder.batch)]
    for sink in sinks:
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(sink, "JPEG", subsampling=2)
    encoded = [np.frombuffer(sink.getvalue(), dtype=np.uint8) for sink in sinks]
    table = encoded[0].tobytes().index(b"\xff\xc4") + 5
    impossible = encoded[0].tobytes()[:table] + b"\xff" * 16 + encoded[0].tobytes()[table + 16 :]
    damaged = [encoded[0].tobytes()[: len(encoded[0]) // 2], impossible]
    decoder = PictureDecoder()
    for place, bad in enumerate(damaged):
        given = [*encoded[:place], np.frombuffer(bad, dtype=np.uint8), *encoded[place + 1 :]]
        for number, pixels in enumerate(decoder.decode(given)):
            if number == place:
                assert pixels is None
            else:
                assert pixels is not None
                assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded[number].tobytes()))))

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from rhofast.errors import ShardFormatError
from rhofast.storage.strict_json import parse_record, read_lines, read_record


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = Field(ge=0)
    scale: float = 1.0
    pair: tuple[int, int] = (0, 0)


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Item]
    free: dict[str, object] = {}


def parse(text: str | bytes) -> Record:
    content = text if isinstance(text, bytes) else text.encode()
    return parse_record(content, Record, where="file.json", raises=ShardFormatError)


def test_what_fits_is_read_with_the_types_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"items": [{"name": "ñ", "size": 3, "scale": 2, "pair": [1, 2]}]}')
    record = read_record(tmp_path / "a.json", Record, raises=ShardFormatError)
    assert record.items[0] == Item(name="ñ", size=3, scale=2.0, pair=(1, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file.json: not JSON at column 1"),
        ('{"items": [}\n', "file.json: not JSON at column 12"),
        ('{"items": [],\n "x": }', "file.json: not JSON at line 2, column 7"),
        ('{"items": [{"name": "a", "size": "3"}]}', "file.json: items.0.size='3': "),
        ('{"items": [{"name": "a", "size": true}]}', "file.json: items.0.size=True: "),
        ('{"items": [{"name": "a", "size": -1}]}', "file.json: items.0.size=-1: "),
        ('{"items": [{"name": "a"}]}', "file.json: key items.0.size is missing"),
        ('{"items": [], "more": 1}', "file.json: unknown key more"),
        ('{"items": [], "items": []}', "file.json: key 'items' occurs twice"),
        ('{"items": [], "free": {"x": NaN}}', "file.json: free.x: not a finite number"),
        ('{"items": [], "free": {"x": -Infinity}}', "file.json: free.x: not a finite number"),
        ('{"items": [], "free": {"x": [1e999]}}', "file.json: free.x.0: not a finite number"),
        ('{"items": [], "free": {"x": 18446744073709551616}}', "file.json: free.x: not a finite number, or too large"),
        (f'{{"items": [], "free": {{"x": {"9" * 5000}}}}}', "file.json: a number has thousands of digits"),
        ('{"items": [], "free": {"\\u003a": 1, "x": ":", "x": 2}}', "file.json: key 'x' occurs twice"),
        ('{"items": [], "free": {"x": "\\ud800"}}', r"file.json: free.x: not text: '\ud800'"),
        ('{"items": [], "free": {"\\udc00": 1}}', r"file.json: free: a key is not text: '\udc00'"),
        (b'{"items": ["\xff"]}', "file.json: not UTF-8 at byte 12"),
        ('{"items": [], "free": {"x": ' + "[" * 40 + "]" * 40 + "}}", "nested more than 32 levels deep"),
        ("[" * 200_000, "nested more than 32 levels deep"),
        ("[" + "0," * 2_000_000 + "0]", "file.json: has more than 2000000 values"),
        ('{"items": 3, "' + "k" * 500 + '": 1}', "file.json: unknown key 'kkkk"),
        ("[]", "file.json: the whole=[...]: "),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_field(text: str | bytes, message: str) -> None:
    with pytest.raises(ShardFormatError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300 and len(str(caught.value).splitlines()) == 1


def test_large_numbers_within_64_bits_and_long_texts_are_read() -> None:
    values = parse('{"items": [], "free": {"x": 18446744073709551615, "y": -9223372036854775808}}').free
    assert values == {"x": 2**64 - 1, "y": -(2**63)}


def test_only_regular_files_of_limited_size_are_read(tmp_path: Path) -> None:
    def read(name: str, **limits: int) -> str:
        with pytest.raises(ShardFormatError) as caught:
            read_record(tmp_path / name, Record, raises=ShardFormatError, hint="make it anew", **limits)
        assert caught.value.hint == "make it anew"
        return caught.value.message.removeprefix(f"{tmp_path}/")

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_text(" " * 100)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    begin = time.monotonic()
    assert read("fifo") == "fifo: not a regular file"
    assert read("zero") == "zero: not a regular file"
    assert read("folder") == "folder: not a regular file"
    assert read("none") == "none: does not exist"
    assert read("x" * 300).endswith("File name too long")
    assert read("large", max_bytes=99) == "large: larger than 99 bytes"
    assert read("sparse").endswith("bytes")
    assert time.monotonic() - begin < 2


def test_a_fifo_with_a_writer_is_refused_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: os.close(os.open(tmp_path / "fifo", os.O_WRONLY)), daemon=True)
    writer.start()
    with pytest.raises(ShardFormatError, match="not a regular file"):
        read_record(tmp_path / "fifo", Record, raises=ShardFormatError)
    writer.join(5)


def test_lines_are_read_one_by_one_and_a_bad_one_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "a", "size": 1}\n\n{"name": "b", "size": 2}\n{"name": "c", "si')
    lines = read_lines(path, Item, raises=ShardFormatError)
    assert [next(lines).name, next(lines).name] == ["a", "b"]
    with pytest.raises(ShardFormatError, match=r"a\.jsonl: line 4: not JSON"):
        next(lines)
    assert [item.size for item in read_lines(path, Item, raises=ShardFormatError, torn_end=True)] == [1, 2]
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(ShardFormatError, match=r"a\.jsonl: line 4: not JSON"):  # it is whole, and wrong
        list(read_lines(path, Item, raises=ShardFormatError, torn_end=True))


def test_lines_and_their_file_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n22\n333\n")
    with pytest.raises(ShardFormatError, match="line 3 is longer than 3 bytes"):
        list(read_lines(path, int, raises=ShardFormatError, max_line_bytes=3))
    with pytest.raises(ShardFormatError, match="larger than 8 bytes"):
        list(read_lines(path, int, raises=ShardFormatError, max_bytes=8))
    assert list(read_lines(path, int, raises=ShardFormatError, max_bytes=9, max_line_bytes=4)) == [1, 22, 333]

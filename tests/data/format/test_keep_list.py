"""Lists of keys: three kinds of files hold the same, and what is wrong with one is one line."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.format.keep_list import KeepList, read_keep_list
from rhofast.errors import ConfigError

KEYS = [f"clip-{number:06d}" for number in range(150_000)]  # more than one batch


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def content(listed: KeepList) -> tuple[list[str], list[float] | None]:
    return listed.keys.to_pylist(), None if listed.weights is None else listed.weights.tolist()


def test_all_kinds_of_files_hold_the_same(tmp_path: Path) -> None:
    weights = (np.arange(len(KEYS)) % 7 + 0.5).tolist()
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * len(KEYS), dtype=np.float32)), 4)
    whole = parquet(tmp_path / "a.parquet", feature=features, weight=weights, key=KEYS)
    table = "".join(f'"{key}",x,{weight}\r\n' for key, weight in zip(KEYS, weights, strict=True))
    same = text(tmp_path / "a.csv", "\ufeffkey,other,weight\r\n" + table)
    assert content(read_keep_list(whole)) == content(read_keep_list(same)) == (KEYS, weights)
    lines = text(tmp_path / "a.txt", "".join(f" {key}\r\n\n" for key in KEYS))
    assert content(read_keep_list(lines)) == (KEYS, None)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ids=["text", "large", "dictionary"],
)
@pytest.mark.parametrize("number", [pa.int8(), pa.uint64(), pa.float32()], ids=str)
def test_text_and_numbers_of_any_type_are_read(tmp_path: Path, kind: pa.DataType, number: pa.DataType) -> None:
    path = parquet(tmp_path / "a.parquet", key=pa.array(["b", "a"]).cast(kind), weight=pa.array([3, 1], number))
    assert content(read_keep_list(path)) == (["b", "a"], [3.0, 1.0])


def test_texts_that_look_like_nothing_are_keys(tmp_path: Path) -> None:
    assert content(read_keep_list(text(tmp_path / "a.csv", "key\nNA\nnull\n-1\n"))) == (["NA", "null", "-1"], None)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.json", lambda path: text(path, "{}"), r"a\.json: the suffix must be one of \.parquet, \.csv, \.txt"),
        ("a.parquet", lambda path: path, r"a\.parquet: No such file"),
        ("a.txt", lambda path: path.mkdir(), r"a\.txt: .*(not a regular file|Is a directory)"),
        ("a.txt", os.mkfifo, r"a\.txt: not a regular file"),
        ("a.parquet", lambda path: text(path, "key\nv1\n"), r"not a readable \.parquet file: "),
        ("a.csv", lambda path: text(path, "key,weight\nv1,x\n"), r"not a readable \.csv file: .*conversion error"),
        ("a.csv", lambda path: text(path, "key,weight\nv1\n"), r"not a readable \.csv file: .*Expected 2 columns"),
        ("a.csv", lambda path: text(path, b"k\xff\n"), r"not a \.csv file of UTF-8 text"),
        ("a.csv", lambda path: text(path, b"key\n\xff\n"), r"not a readable \.csv file: .*UTF8"),
        ("a.txt", lambda path: text(path, b"v1\n\xff\n"), r"not a \.txt file of UTF-8 text"),
        ("a.csv", lambda path: text(path, ""), "there is no column 'key'; the columns are none"),
        ("a.csv", lambda path: text(path, "name,weight\nv1,1\n"), "no column 'key'; the columns are name, weight"),
        ("a.parquet", lambda path: parquet(path, name=["v1"]), "no column 'key'; the columns are name .*'key'"),
        ("a.parquet", lambda path: parquet(path, key=[1, 2]), "column 'key' holds int64, not text"),
        ("a.parquet", lambda path: parquet(path, key=[{"a": "b"}]), "column 'key' holds struct"),
        (
            "a.parquet",
            lambda path: parquet(path, key=["v1"], weight=["2"]),
            "column 'weight' holds string, not numbers",
        ),
        ("a.parquet", lambda path: parquet(path, key=pa.array([], pa.string())), "lists no keys"),
        ("a.txt", lambda path: text(path, "\n \n"), "lists no keys"),
        ("a.parquet", lambda path: parquet(path, key=["v1", None]), "row 2 has no key"),
        ("a.csv", lambda path: text(path, "key,weight\nv1,1\n,1\n"), "row 2 has no key"),
        ("a.txt", lambda path: text(path, "a\nb\na\n"), "1 key is listed more than once: 'a' .*larger weight"),
        ("a.txt", lambda path: text(path, "a\nb\nc\nd\n" * 2), "4 keys are listed more than once: 'a', 'b', 'c', ..."),
        ("a.csv", lambda path: text(path, "key,weight\na,1\nb,0\n"), "weight of 'b' is 0; .*positive and finite"),
        ("a.csv", lambda path: text(path, "key,weight\na,-2\n"), "weight of 'a' is -2;"),
        ("a.csv", lambda path: text(path, "key,weight\na,nan\n"), "weight of 'a' is nan;"),
        ("a.csv", lambda path: text(path, "key,weight\na,\n"), "weight of 'a' is nan;"),
        ("a.csv", lambda path: text(path, "key,weight\na,inf\n"), "weight of 'a' is inf;"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, make: Callable[[Path], object], said: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(ConfigError, match=f"(?s)^keep=.*{said}") as caught:
        read_keep_list(path)
    assert "\n" not in str(caught.value)

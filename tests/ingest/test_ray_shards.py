"""Ray makes the shards that processes of one machine make, of every kind of list."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.bars import write_bars


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_makes_the_shards_of_tables_and_segments_that_processes_make(tmp_path: Path) -> None:
    """A table of the videos themselves, with segments of them, and a list of segments of files that follow."""
    video = write_bars(tmp_path / "x.mp4", 10, 40, "-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p")
    content = [video.read_bytes()] * 3
    table = pa.table({"id": [0, 1, 2], "content": content, "start": [None, 1.0, 2.5], "end": [1.0, 2.2, None]})
    pq.write_table(table, tmp_path / "videos.parquet")
    lines = "".join(f"{video},{start},{start + 0.7}\n" for start in (0.3, 1.9, 3.1))
    (tmp_path / "segments.csv").write_text(f"path,start,end\n{lines}")
    for source, codec in (("videos.parquet", "jpeg"), ("segments.csv", "remux")):
        recipe = "parquet" if source.endswith("parquet") else "csv_list"
        stored = []
        for executor in ("processes", "ray"):
            out = tmp_path / f"{executor}-{recipe}"
            options = f"--recipe {recipe} --codec {codec} --samples-per-shard 2 --workers 2 --executor {executor}"
            command = [sys.executable, "-m", "rhofast", "shard", tmp_path / source, out, *options.split()]
            done = subprocess.run([*map(str, command), "--name", "set"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            stored.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert stored[0] == stored[1]
        assert json.loads(stored[0]["sizes.json"]) == {"shard-000000.tar": 2, "shard-000001.tar": 1}

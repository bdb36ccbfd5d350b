"""Rows that the processes of a machine share: each machine has all of them once, whatever the division."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError
from rhofast.evaluation.features import extract_features
from rhofast.evaluation.model import open_model
from rhofast.evaluation.shared_rows import SharedRows
from tests.helpers.program import run_ranks
from tests.helpers.shards import damage_unit

CPU = torch.device("cpu")
SETTINGS = ("backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2", "eval.batch_size=4")

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np, torch
import torch.distributed as dist
from accelerate import PartialState
from rhofast.data.sources import open_shards
from rhofast.evaluation.features import extract_features
from rhofast.evaluation.model import open_model
from rhofast.evaluation.shared_rows import SharedRows

PartialState(cpu=True)  # opens the process group
torch.set_num_threads(1)
number, out = dist.get_rank(), Path(sys.argv[1])
os.environ["LOCAL_WORLD_SIZE"] = sys.argv[2]  # as if the ranks were on several machines
table = np.arange(1000 * 2 * 3, dtype=np.float32).reshape(1000, 2, 3)
rows, mine = SharedRows(1000, torch.device("cpu")), np.arange(number, 990, dist.get_world_size())
if number != 1:
    rows.write(mine, table[mine])
written = np.setdiff1d(np.arange(990), np.arange(1, 990, dist.get_world_size()))
whole = rows.join(mine if number != 1 else mine[:0])
assert np.array_equal(whole[written], table[written])
assert not list(Path(os.environ["TMPDIR"]).glob("rhofast-*"))
dist.barrier()
assert np.array_equal(rows.compact(written), table[written])
if rows._descriptor is not None:  # what the first rank of a machine writes, its others see
    dist.barrier()
    if rows.is_first:
        whole[0] = -7 - number
    dist.barrier()
    assert (whole[0] == -7 - number // int(sys.argv[2]) * int(sys.argv[2])).all()

shards, model = open_shards(sys.argv[3]), open_model("random", overrides=sys.argv[4:])
section = model.config.eval.model_copy(update={"keep": out / "kept"})
for name, config in (("plain", model.config), ("kept", model.config.model_copy(update={"eval": section}))):
    for samples in (None, np.array([11, 3, 5])):
        found = extract_features(model.backbone, shards, config, samples=samples)
        assert len(found.bad) == 1
        name = f"{name}-some" if samples is not None else name
        np.savez(out / f"{name}-{number}.npz", values=found.values, sample=found.sample, label=found.label)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("ranks", "per_machine"), [(2, 2), (2, 1), (4, 2)])
def test_ranks_on_any_number_of_machines_have_what_one_has(
    shards: ShardSet, tmp_path: Path, ranks: int, per_machine: int
) -> None:
    torch.set_num_threads(1)
    damage_unit(shards, 5, 0)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "tmp").mkdir()
    arguments = [tmp_path / "script.py", tmp_path, per_machine, shards.root, *SETTINGS]
    run_ranks(*arguments, ranks=ranks, TMPDIR=str(tmp_path / "tmp"))
    model = open_model("random", overrides=SETTINGS)
    for samples, name in ((None, ""), (np.array([3, 5, 11]), "-some")):
        one = extract_features(model.backbone, shards, model.config, samples=samples)
        assert one.sample.tolist() == ([3, 11] if name else [n for n in range(13) if n != 5])
        for kind in ("plain", "kept"):
            for rank in range(ranks):
                found = np.load(tmp_path / f"{kind}{name}-{rank}.npz")
                assert np.array_equal(found["sample"], one.sample) and np.array_equal(found["label"], one.label)
                assert np.array_equal(found["values"], one.values)


def test_one_process_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    rows = SharedRows(3, CPU)
    rows.write(np.array([2, 0]), np.array([[2.0], [0.0]], dtype=np.float32))
    rows.join(np.array([0, 2]))
    assert rows.compact(np.array([0, 2])).tolist() == [[0.0], [2.0]]
    assert SharedRows(0, CPU).join(np.empty(0, np.int64)).shape == (0, 0)


def test_a_folder_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rhofast.evaluation.shared_rows.ranks_per_node", lambda size: 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot share features there: No such file") as raised:
        SharedRows(3, CPU)
    assert raised.value.hint is not None and "TMPDIR" in raised.value.hint
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def no_room(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(ConfigError, match=r"share features there: 0\.00 GB: No space left"):
        SharedRows(3, CPU).write(np.array([0]), np.zeros((1, 5), np.float32))
    assert not list(tmp_path.iterdir())

"""All ranks must have imported the same files."""

import sys
from pathlib import Path

import pytest
import torch

from rhofast.config.load import parse_config
from rhofast.errors import ConfigError
from rhofast.storage import user_code
from rhofast.training import code_check

NET = """
from torch import nn
class OwnNetOfARank(nn.Linear):
    num_features = 4
    def __init__(self): super().__init__(3, 4)
    def forward(self, x): return super().forward(x.mean(dim=(2, 3, 4)))
"""


def test_ranks_with_different_files_begin_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_code, "_IMPORTED", {})
    (tmp_path / "own_net_of_a_rank.py").write_text(NET)
    name = f"{tmp_path}/own_net_of_a_rank.py:OwnNetOfARank"
    config = parse_config({"name": "x", "backbone": {"name": name}, "clips": {"num_frames": 2}}, where="test")
    code_check.check_user_code(config, torch.device("cpu"))
    monkeypatch.setattr(code_check, "gather_objects", lambda value: [value, {**value, "backbone": "f" * 64}])
    with pytest.raises(ConfigError, match=r"backbone\.name=.*: rank 1 has imported another file than rank 0"):
        code_check.check_user_code(config, torch.device("cpu"))
    del sys.modules["own_net_of_a_rank"]

"""What a run records about its process and its device."""

import pytest
import torch

from rhofast.training.environment import device_memory
from rhofast.training.metrics import METRICS


def test_device_memory_counts_what_other_libraries_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 50)
    memory = device_memory(torch.device("cuda", 0))
    assert memory == {"device_memory_bytes": 70, "torch_memory_bytes": 50}
    assert all(METRICS[name].only == "cuda" for name in memory)

"""What is done about the warnings and errors of DALI."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from rhofast.data.decode import dali
from rhofast.errors import UndecodableError

# DALI warns once per process, when it builds its first graph for a GPU. `-W error` on the command line comes first.
_WARNS = """
from rhofast.data.decode.dali import import_dali
import_dali()
from nvidia.dali import backend
backend.GetCudaVersion = lambda: {cuda}
backend.GetCufftVersion = lambda: 12000
backend.GetNppVersion = lambda: -1
backend.check_cuda_runtime()
"""


def warns(*, cuda: int) -> str:
    command = [sys.executable, "-W", "error", "-c", _WARNS.format(cuda=cuda)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_that_npp_is_missing_is_no_warning_and_that_the_gpu_is_missing_stays_one() -> None:
    assert not warns(cuda=13000)
    assert "GPU is not available" in warns(cuda=-1)


def test_the_tests_ignore_the_same_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import backend

    for name, version in (("GetCudaVersion", 13000), ("GetCufftVersion", 12000), ("GetNppVersion", -1)):
        monkeypatch.setattr(backend, name, lambda version=version: version)
    monkeypatch.setattr(backend, "cuda_checked", False)
    backend.check_cuda_runtime()


ERROR = RuntimeError("CUDA error: an illegal memory access was encountered")


def raised(
    find: Callable[[], dict[int, str]],
    *,
    samples: int = 3,
    good: Callable[[], object] | None = None,
    device_id: int | None = None,
) -> Exception:
    return dali.error_of_batch(ERROR, find, samples=samples, decode_known_good=good, device_id=device_id)


def fails() -> dict[int, str]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_samples_that_fail_alone_are_named() -> None:
    for samples, reasons in ((3, {1: "bad"}), (3, {0: "bad", 2: "bad"}), (1, {0: "bad"})):
        error = raised(lambda reasons=reasons: reasons, samples=samples)  # type: ignore[misc]
        assert isinstance(error, UndecodableError) and error.reasons == reasons


def test_if_no_sample_fails_alone_none_is_blamed() -> None:
    assert raised(dict) is ERROR
    assert raised(dict, samples=1, good=dict) is ERROR


@pytest.mark.parametrize("samples", [1, 3])
def test_if_all_samples_fail_one_that_was_fine_before_decides(samples: int) -> None:
    reasons = dict.fromkeys(range(samples), "bad")
    assert isinstance(raised(lambda: reasons, samples=samples, good=dict), UndecodableError)
    assert raised(lambda: reasons, samples=samples, good=fails) is ERROR
    assert (raised(lambda: reasons, samples=samples) is ERROR) == (samples > 1)


def test_an_error_while_samples_are_tried_does_not_hide_the_first() -> None:
    assert raised(fails) is ERROR


@pytest.mark.parametrize("fails_at", [0, 1, None])
def test_a_device_that_reports_an_error_is_to_blame(monkeypatch: pytest.MonkeyPatch, fails_at: int | None) -> None:
    asked, tried = [], []

    def synchronize(device: int) -> None:
        asked.append(device)
        if len(asked) - 1 == fails_at:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    def find() -> dict[int, str]:
        tried.append(True)
        return {1: "bad"}

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    error = raised(find, device_id=2)
    assert set(asked) == {2}
    assert bool(tried) == (fails_at != 0)  # on a device that has failed nothing is tried
    assert (error is ERROR) == (fails_at is not None)


# A pipeline that runs, and is garbage in a cycle, when a process forks that collects garbage.
_FORKS = """
import gc, os, signal, time
from rhofast.data.decode.dali import import_dali
fn, pipeline_def, types = import_dali()

@pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_dynamic=True)
def graph():
    return fn.random.uniform()

gc.disable()
pipeline = graph()
pipeline.build()
pipeline.run()
time.sleep(0.3)  # its threads wait for work, as they do between batches
pipeline.itself = pipeline
del pipeline
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(20)  # ends a child that hangs
gc.collect()
os._exit(0)
"""


def test_a_forked_process_destroys_no_pipeline_whose_threads_it_lacks() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKS]  # Python 3.12 warns of such forks
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")

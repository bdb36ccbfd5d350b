"""Where the command line draws progress bars, and where it prints plain lines."""

import io

import pytest
from rich.console import Console

from rhofast.cli.console import progress_bars, starts_plain


@pytest.mark.parametrize(
    ("environment", "plain"),
    [
        ({}, False),
        ({"JPY_PARENT_PID": "17"}, True),  # as jupyter_client starts kernels
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, True),  # as every IPython kernel sets it
        ({"MPLBACKEND": "agg"}, False),
    ],
)
def test_a_cell_of_a_notebook_gets_no_cursor_movements(
    environment: dict[str, str], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", **environment}.items():  # kernels set FORCE_COLOR, too
        monkeypatch.setenv(name, value)
    assert starts_plain() is plain
    written = io.StringIO()
    Console(file=written, force_terminal=False if starts_plain() else None).print("word", style="red")
    assert ("\x1b" not in written.getvalue()) is plain


def test_a_bar_begins_with_its_first_news(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bars("reading", "writing"):
        pass
    assert capfd.readouterr() == ("", "")
    with progress_bars("reading", "writing") as (on_read, _):
        on_read(1, 4)
        on_read(3, 4)
    told = capfd.readouterr()
    assert "reading" in told.err and "3/4" in told.err and "writing" not in told.err and not told.out

"""Any text becomes one line that is safe to show, in a terminal, in HTML and in a plot."""

import html
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rhofast.display.text import html_text, plain_words, plot_text, printable
from rhofast.errors import DecodeError, RhofastError

# Characters that have broken terminals, pages, plots and files, together with harmless ones around them.
TROUBLE = "ab é中한अع🏃$\\<&>\"'[/]%_^"
TROUBLE += "\n\r\t\x00\x1b\x07\x7f\x85\x9b\u200b\u200d\u202e\u2028\u2066\u3164\ufeff\udce9\ud800\U000e0100"
anything = st.text(st.one_of(st.sampled_from(TROUBLE), st.characters()), max_size=400)


class Reader(HTMLParser):
    """Keeps the text of a page, and how many tags it has."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = "", 0

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[
            ("walk the dog", "walk the dog"),
            ("café", "café"),
            ("跑步 한국어 हिन्दी عربي 🏃", "跑步 한국어 हिन्दी عربي 🏃"),
        ],
        *[("a\nb", r"a\nb"), ("a\r\tb", r"a\r\tb"), ("\x1b[31mred", r"\x1b[31mred"), ("\x9b2J", r"\x9b2J")],
        *[("caf\udce9", r"caf\udce9"), ("a\u202eb", r"a\u202eb"), ("a\u200bb", r"a\u200bb"), ("\u3164", r"\u3164")],
        *[("\x00", r"\x00"), ("a\u2028b", r"a\u2028b"), ("\U000e0041", r"\U000e0041"), ("", "")],
    ],
)
def test_what_shows_as_itself_is_kept_and_the_rest_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(anything, st.integers(16, 300))
@example("\x1b" * 300, 16)
@example("\n" * 16, 16)
def test_the_result_is_one_short_line_that_any_output_takes(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert (
        shown.isprintable()
        and shown == shown.encode().decode()
        and len(shown.splitlines()) <= 1
        and len(shown) <= limit
    )
    assert printable(shown, limit) == shown


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=201, max_size=600))
def test_a_long_text_keeps_both_ends(text: str) -> None:
    shown = printable(text)
    head, tail = shown.split("...")
    assert len(shown) == 200 and text.startswith(head) and text.endswith(tail)


def test_no_escape_is_cut_and_a_text_without_end_costs_nothing() -> None:
    assert printable("\n" * 1000, 16) == r"\n\n\n...\n\n\n"
    assert printable("a" * 50_000_000, 16) == "aaaaaaa...aaaaaa"


@given(anything)
def test_html_shows_the_line_and_has_no_markup(text: str) -> None:
    reader = Reader()
    reader.feed(f"<p title='{html_text(text)}'>{html_text(text)}</p>")
    reader.close()
    assert (reader.text, reader.tags) == (printable(text), 1)
    assert html.unescape(html_text(text)) == printable(text)


@given(anything)
@example(r"$\frac{1}{$")
@example(r"\$a\\$b$")
def test_a_plot_draws_the_line_and_no_mathematics(text: str) -> None:
    from matplotlib.text import Text

    drawn, is_mathematics = Text()._preprocess_math(plot_text(text))  # type: ignore[attr-defined]
    assert (drawn, is_mathematics) == (printable(text), False)


@given(anything, anything)
def test_an_error_is_one_printable_line(message: str, hint: str) -> None:
    for error in (RhofastError(message, hint=hint), DecodeError(message, shard=hint, key=message, offset=3)):
        assert str(error).isprintable() and len(str(error)) < 9_000


@pytest.mark.parametrize(
    ("hint", "seen"),
    [
        ("raise the limit: --set data.cache_gb=N", 'raise the limit: options={"data.cache_gb": N}'),
        ("--set augment.rand_ops=0 --set augment.mix=0", 'options={"augment.rand_ops": 0} options={"augment.mix": 0}'),
        ("--set data.decoder=auto", 'options={"data.decoder": "auto"}'),
        ("raise it (--set data.cache_gb=N) or not", 'raise it (options={"data.cache_gb": N}) or not'),
        ("choose another: --set train.batch_size=...", "choose another: batch_size=..."),
        ("the folder: --set data.train=FOLDER", "the folder: shards=FOLDER"),
        ("--set clips.num_frames=4 or --set train.fake=true", 'num_frames=4 or options={"train.fake": True}'),
        ("pass --set 'backbone.name=x.py:f'", "pass --set 'backbone.name=x.py:f'"),
    ],
)
def test_python_reads_arguments_where_the_command_line_has_options(hint: str, seen: str) -> None:
    error = RhofastError("wrong", hint=hint)
    assert str(error) == f"wrong ({seen})" and error.hint == hint


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("Input should be greater than or equal to 1", "must be at least 1"),
        ("Input should be less than or equal to 31", "must be at most 31"),
        ("Input should be a valid integer, unable to parse string as an integer", "must be an integer"),
        ("Input should be a valid number", "must be a number"),
        ("Input should be a valid tuple", "must be a list"),
        ("String should match pattern '^[a-z]+$'", "must match pattern '^[a-z]+$'"),
        ("Value error, no such codec", "no such codec"),
        ("", ""),
    ],
)
def test_a_message_of_pydantic_is_said_as_all_others(message: str, plain: str) -> None:
    assert plain_words(message) == plain

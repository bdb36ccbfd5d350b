"""The documentation says what is true: its commands and snippets run, its links lead somewhere, its reference is whole.

Blocks of README.md and docs/**/*.md in the languages bash, python, toml and csv are run in order, each page in a
folder of its own, in which there are

    videos/         sixteen tiny videos in two class folders
    shards/train    shards of them               shards/test    held-out shards of eight others
    runs/tiny       a run of two steps           configs/       the repository's

A block can be marked in the page's source, by a comment on the line before it:

    <!-- test: skip, REASON -->        it is left alone
    <!-- test: parse, REASON -->       its commands and the options in them must be known, and configs must load
    <!-- test: file NAME -->           it is written to a file that later blocks use
    <!-- test: VERB with OPTIONS -->   the commands `rhofast VERB ...` in it get these options, too; several after ;
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

from rhofast.cli.app import app, main
from rhofast.config.load import load_config, parse_config
from rhofast.data.codecs import CODECS
from rhofast.models.backbones import BACKBONES
from rhofast.models.methods import METHODS
from rhofast.storage import user_code
from tests.helpers.shards import ROOT, TINY_PAGE, encode_mjpeg, frame_pixels

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LANGUAGES = ("bash", "python", "toml", "csv")
MARK = re.compile(r"<!-- test: (?:(skip|parse), (.+)|(file) (\S+)|((?:[a-z ]+ with [^;]+;? ?)+)) -->")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page. mark: skip, parse, file, with, or none; value: what stands behind it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None = None
    value: str = ""

    def added(self, given: list[str]) -> list[str]:
        """Return the options that a command line of rhofast gets in addition."""
        words: list[str] = []
        if self.mark == "with":
            for part in self.value.split("; "):
                verb, _, options = part.partition(" with ")
                words += shlex.split(options) if given[:1] == [verb] else []
        return words

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page that can be run."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start].removeprefix("```").strip()
        if language in LANGUAGES:
            before = lines[start - 1] if start else ""
            marked = MARK.fullmatch(before)
            assert marked or "<!-- test" not in before, f"{page}:{start}: {before} is not a mark that is known"
            mark, value = None, ""
            if marked:
                mark, value = marked[1] or marked[3] or "with", marked[2] or marked[4] or marked[5]
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(page=page, line=start + 1, language=language, text=text, mark=mark, value=value))
        start = None
    assert start is None, f"{page}: a block does not end"
    return found


def command_lines(block: Block) -> list[list[str]]:
    """Return the command lines of a bash block, as words, without comments."""
    joined = block.text.replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [line for line in words if line]


def of_rhofast(words: list[str]) -> list[str] | None:
    """Return what `rhofast` gets in a command line, however it is started; None where it is not started."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["rhofast"]:
        return words[1:]
    for number, word in enumerate(words):
        if word == "IMAGE" and words[number + 1] != "launch":
            return words[number + 1 :]
        if word == "rhofast" and words[number - 1] == "-m":
            return words[number + 1 :]
        if "rhofast " in word:
            return of_rhofast(shlex.split(word))
    return None


def parse(words: list[str], where: str) -> None:
    """Parse a command line of rhofast as the program does, and load the config that it names."""
    called: list[tuple[Any, dict[str, Any]]] = []

    def silence(command: Any) -> None:
        for child in getattr(command, "commands", {}).values():
            silence(child)
        if not hasattr(command, "commands"):
            command.callback = lambda **given: called.append((command, given))

    program = typer.main.get_command(app)
    silence(program)
    try:
        program.main([word for word in words if word != "--debug"], standalone_mode=False)
    except Exception as error:
        raise AssertionError(f"{where}: rhofast {shlex.join(words)}: {error}") from error
    if not called:  # --help
        return
    command, given = called[0]
    named = {param.name: param for param in command.params}
    settings = next((given[name] for name, param in named.items() if "--set" in param.opts), None)
    config = next((given[name] for name, param in named.items() if is_config(param)), None)
    if config is not None or settings:
        load_config(config, settings or [])


def is_config(param: Any) -> bool:
    return "--config" in param.opts or str(param.metavar or "").upper() == "CONFIG"


# ---- the folder in which a page's blocks run ----


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("docs")
    for folder, numbers in (("videos", range(16)), ("videos_test", range(16, 24))):
        for number in numbers:
            path = root / folder / ("left", "right")[number % 2] / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_mjpeg([frame_pixels(number, frame) for frame in range(24)]))
    here = Path.cwd()
    os.chdir(root)
    try:
        (root / "configs").symlink_to(ROOT / "configs")
        (root / "tiny.toml").write_text(TINY_PAGE)
        for folder, target in (("videos", "train"), ("videos_test", "test")):
            rhofast("shard", folder, f"shards/{target}", "--short-side", "64")
        rhofast("train", "tiny.toml", "--set", "data.train=shards/train", "--set", "train.log_steps=1")
    finally:
        os.chdir(here)
    return root


def rhofast(*words: str) -> None:
    """Run a command line of rhofast in this process."""
    sys.argv = ["rhofast", *words]
    try:
        main()
    except SystemExit as error:
        assert not error.code, f"rhofast {shlex.join(words)}: exit code {error.code}"


@pytest.fixture
def place(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the workspace, as the current folder; what a page registers is forgotten afterwards."""
    folder = tmp_path / "page"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    torch.set_num_threads(1)
    tables: list[dict[str, Any]] = [METHODS, BACKBONES, CODECS]
    before = [dict(table) for table in tables]
    monkeypatch.setattr(user_code, "_IMPORTED", {})
    yield folder
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def run_line(words: list[str], block: Block) -> None:
    if (given := of_rhofast(words)) is not None and words[0] == "rhofast":
        rhofast(*given, *block.added(given))
    elif words[0] == "python" and words[1].endswith(".py"):
        sys.argv = words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as error:
            assert not error.code, f"{block.where}: {shlex.join(words)}: exit code {error.code}"
    else:
        subprocess.run(words, check=True, timeout=60)


# ---- tests ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse_and_configs_load(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.mark == "file" and block.language == "toml":
            Path(block.value).write_text(block.text)
        if block.mark in ("skip", "file"):
            continue
        assert block.language != "csv", f"{block.where}: a table is written to a file"
        if block.language == "bash":
            for words in command_lines(block):
                given = of_rhofast(words)
                assert given is not None or block.mark != "parse" or words[0] == "export", f"{block.where}: {words}"
                if given is not None:
                    parse(given, block.where)
        elif block.language == "toml":
            parse_config({"name": "page", **tomllib.loads(block.text)}, block.where)


def runs(page: Path) -> bool:
    """Whether there is something on a page to be run."""
    return any(block.mark in (None, "with", "file") and block.language != "toml" for block in blocks_of(page))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=name_of)
def test_a_page_runs_from_top_to_bottom(page: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        if block.mark in ("skip", "parse"):
            continue
        if block.mark == "file":
            (place / block.value).parent.mkdir(parents=True, exist_ok=True)
            (place / block.value).write_text(block.text)
        elif block.language == "python":
            padding = "\n" * block.line  # so that a traceback names the line of the page
            exec(compile(padding + block.text, str(page), "exec"), names)
        elif block.language == "bash":
            for words in command_lines(block):
                run_line(words, block)


def test_own_code_is_short() -> None:
    blocks = blocks_of(ROOT / "docs/tutorials/use_your_own_network.md")
    lines = {block.value: len(block.text.splitlines()) for block in blocks if block.value.endswith(".py")}
    assert lines.keys() == {"per_frame.py", "videomae.py", "predict.py"} and max(lines.values()) <= 25


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        where, _, anchor = target.partition("#")
        if "://" in where:
            continue
        path = Path(os.path.normpath(page.parent / where)) if where else page
        if path in {ROOT / "docs" / name for name in GENERATE.GENERATED}:
            continue
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md" and path.name != "api.md":
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {slug(head) for head in heads}, f"{page}: {target}"


def slug(head: str) -> str:
    """Return the anchor of a heading."""
    plain = re.sub(r"[^\w\s-]", "", head.lower()).strip()
    return re.sub(r"[\s-]+", "-", plain)


def load_generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rhofast_docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generate()


@pytest.mark.parametrize("target", GENERATE.GENERATED)
def test_the_reference_can_be_made(target: str) -> None:
    text = GENERATE.GENERATED[target]()
    assert text.startswith("# ") and len(text) > 500


def test_the_reference_describes_every_option() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\| *([^|]*) \|$", GENERATE.config_page(), flags=re.MULTILINE)
    assert len(rows) > 100
    assert [key for key, described in rows if not described.strip()] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]))
    written = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert listed == written | set(GENERATE.GENERATED) | set(GENERATE.COPIES.values())


def test_every_promise_to_readers_of_strangers_files_has_its_tests() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = text.split("## Which tests hold the promises")[1].split("##")[0].strip().splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", row)
        assert tests and row.count("`") % 2 == 0, row
        for path, name in tests:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name} does not exist"


def test_links_of_the_repository_become_links_of_the_site() -> None:
    text = (
        "[a](../../configs/demo.toml) [b](distributed.md#one) [c](../../benchmarks/README.md) ![d](../assets/clips.png)"
        " [![e](https://example.org/badge)](../../LICENSE)"
    )
    fitted = GENERATE.fit_links(text, "docs/guides/slurm.md", "guides/slurm.md")
    assert fitted == (
        "[a](https://github.com/rhofast/rhofast/blob/main/configs/demo.toml) [b](distributed.md#one) "
        "[c](../benchmarks.md) ![d](../assets/clips.png)"
        " [![e](https://example.org/badge)](https://github.com/rhofast/rhofast/blob/main/LICENSE)"
    )

"""Make the pages of the documentation that the code knows best, and fit links to the site; a hook of MkDocs.

    README.md, CHANGELOG.md, CONTRIBUTING.md, SECURITY.md, benchmarks/README.md  -->  pages of the site, as they stand
    rhofast.config.schema, options of methods, backbones, codecs    -->  reference/config.md
    rhofast.cli.app                                                 -->  reference/cli.md
    rhofast.training.metrics.METRICS                                -->  reference/metrics.md
    rhofast.ingest.recipes                                          -->  reference/recipes.md
    docs/notebooks/first_hour.ipynb, with its outputs               -->  notebooks/first_hour.md

Links in the sources are those of the repository, so that they work on GitHub, too. Links to files that are no page of
the site become links to the repository.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/rhofast/rhofast"

# Pages of the site that are files elsewhere in the repository.
COPIES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}


# ---- hooks ----


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/."""
    from mkdocs.structure.files import File

    for source, target in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    for target, make in GENERATED.items():
        files.append(File.generated(config, target, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fit a page's links to the site, and leave out the marks of the documentation's test."""
    places = {target: source for source, target in COPIES.items()}
    source = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if source != f"docs/{page.file.src_uri}":
        page.edit_url = f"{REPOSITORY}/edit/main/{source}"
    if page.file.src_uri in GENERATED:
        page.edit_url = None
        return markdown
    return fit_links(re.sub(r"<!--.*?-->\n?", "", markdown, flags=re.DOTALL), source, page.file.src_uri)


def fit_links(markdown: str, source: str, target: str) -> str:
    """Return a page with its links to files fitted to the site.

    Args:
        markdown: the page's text.
        source: the page's path in the repository, from which its links count.
        target: the page's path in the site.
    """

    def fit(link: re.Match[str]) -> str:
        where, hash_, anchor = link[1].partition("#")
        if "://" in where or not where or where.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), where))
        if path in COPIES:
            path = f"docs/{COPIES[path]}"
        if path.startswith("docs/notebooks/"):
            path = path.replace(".ipynb", ".md")
        if path.startswith("docs/"):
            found = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(target) or ".")
        else:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            found = f"{REPOSITORY}/{kind}/main/{path}"
        return f"]({found}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    # The text of a link may itself be a picture (a badge), so only the end of the text is looked for.
    linked = [part if part.startswith("```") else re.sub(r"\]\(([^)\s]+)\)", fit, part) for part in parts]
    return "".join(linked)


# ---- reference/config.md ----


# What `backbone.name` and `method.name` may be besides a name.
_OWN = (
    "[code of your own](../tutorials/use_your_own_network.md): `package.module:function` or `path/to/file.py:function`"
)


def config_page() -> str:
    """Return the page of every option: those of a run, and those of methods, backbones and codecs."""
    from rhofast.config.schema import Config
    from rhofast.data.codecs import CODECS
    from rhofast.models.backbones import BACKBONES
    from rhofast.models.backbones.s3d import S3DConfig
    from rhofast.models.backbones.slow import SlowConfig
    from rhofast.models.backbones.torchvision_video import TorchvisionConfig
    from rhofast.models.backbones.vit import ViTConfig
    from rhofast.models.methods import METHODS

    lines = [
        "# Configuration",
        "",
        "A run is one TOML file. Each section below is a table of it (`[data]`, `[clips]`, ...). Every key can also be",
        "set on the command line, as `--set data.threads=8`. An unknown key, a value of another type and a value out",
        "of range are refused before anything is opened. This page is made from `rhofast/config` and the options",
        "that methods, backbones and codecs declare.",
        "",
        "## The run",
        "",
        *_options(Config, leave_out_sections=True),
    ]
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name not in ("backbone", "method"):
            lines += [f"## `[{name}]`", "", *_prose(kind), *_options(kind, prefix=f"{name}.")]
            for key, nested in _nested(kind):
                one_of_several = get_origin(kind.model_fields[key].annotation) is tuple
                heading = f"### An entry of `{name}.{key}`" if one_of_several else f"### `{name}.{key}` as a table"
                lines += [heading, "", *_prose(nested), *_options(nested)]
    lines += ["## `[method]`", "", f"`name` is one of {_names(METHODS)}, or {_OWN}. The other keys depend on it.", ""]
    for name, (kind, _) in METHODS.items():
        lines += [f'### `method.name = "{name}"`', "", *_prose(kind), *_options(kind, prefix="method.")]
    lines += [
        "## `[backbone]`",
        "",
        f"`name` is one of {_names(BACKBONES)}, or {_OWN}. The other keys depend on it.",
        "",
    ]
    lines += ["### `slow_...`", "", *_prose(SlowConfig), *_options(SlowConfig, prefix="backbone.")]
    lines += ["### `s3d`, `s3dg`", "", *_prose(S3DConfig), *_options(S3DConfig, prefix="backbone.")]
    lines += ["### `vit`", "", *_prose(ViTConfig), *_options(ViTConfig, prefix="backbone.")]
    if TorchvisionConfig.model_fields:
        lines += ["### Backbones of torchvision", "", *_prose(TorchvisionConfig), *_options(TorchvisionConfig)]
    else:
        lines += ["### Backbones of torchvision", "", "They have no options.", ""]
    lines += ["## Codecs", "", "Options of `rhofast shard` that belong to the storage codec (`--codec`).", ""]
    for name, codec in CODECS.items():
        lines += [f"### `{name}`", "", *_prose(codec), *_options(codec)]
    return "\n".join(lines) + "\n"


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in known)


def _nested(kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the fields of a section that are lists of sections, or may be a section."""
    for name, field in kind.model_fields.items():
        for part in get_args(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield name, part


def _prose(kind: type) -> list[str]:
    """Return what a section says of itself, without the list of its attributes."""
    text = inspect.cleandoc(kind.__doc__ or "")
    text = text.partition("Attributes:")[0].strip()
    return [text, ""] if text else []


def _options(kind: type[BaseModel], *, prefix: str = "", leave_out_sections: bool = False) -> list[str]:
    """Return a table of a section's keys; nothing where it has none."""
    rows = []
    for name, field in kind.model_fields.items():
        if leave_out_sections and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_toml(field.default)}`"
        limits = _limits(field.metadata)
        described = " ".join((field.description or _attribute(kind, name)).split())
        cells = [
            f"`{prefix}{name}`",
            _type_name(field.annotation) + (f", {limits}" if limits else ""),
            default,
            described,
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if not rows:
        return ["It has no options.", ""]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def _attribute(kind: type, name: str) -> str:
    """Return what the docstring of a class, or of one that it derives from, says of an attribute."""
    for base in kind.__mro__:
        attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:")[2]
        found = re.search(rf"^    {name}: (.*(?:\n {{5,}}.*)*)", attributes, flags=re.MULTILINE)
        if found:
            return found[1]
    return ""


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "..."
    if isinstance(value, bool | int | float | str):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value))


def _type_name(kind: Any) -> str:
    """Return a type in words of a configuration file."""
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return " or ".join(f"`{_toml(value)}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        if Ellipsis in get_args(kind):
            return f"list of {_type_name(parts[0])}"
        return f"{len(parts)} numbers"
    if get_args(kind) and not isinstance(kind, type):
        parts = [part for part in get_args(kind) if isinstance(part, type) or get_args(part)]
        return " or ".join(dict.fromkeys(_type_name(part) for part in parts))
    words = {"int": "integer", "float": "number", "bool": "true or false", "str": "text", "Path": "path"}
    name = getattr(kind, "__name__", str(kind))
    return words.get(name, "table")


def _limits(metadata: list[Any]) -> str:
    signs = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    found = []
    for part in metadata:
        for name, text in signs.items():
            if (value := getattr(part, name, None)) is not None:
                found.append(text.format(value))
    return ", ".join(found)


# ---- reference/cli.md ----


def cli_page() -> str:
    """Return the page of every command, with its arguments and options."""
    import typer

    from rhofast.cli.app import app

    lines = [
        "# Command line",
        "",
        "Every command also prints this with `--help`. Errors are one line and a hint on standard error, with exit",
        "code 2; `--debug`, anywhere in the line, shows the traceback ([exit codes](exit_codes.md)).",
        "",
    ]
    for path, command in _commands(typer.main.get_command(app), ["rhofast"]):
        lines += [f"## {' '.join(path)}", ""]
        kinds = get_type_hints(inspect.unwrap(command.callback))
        arguments = [param for param in command.params if not param.opts[0].startswith("-")]
        options = [param for param in command.params if param.opts[0].startswith("-") and not param.hidden]
        shown = [_argument_name(param) for param in arguments]
        lines += ["```text", " ".join([*path, *shown, *(["[OPTIONS]"] if options else [])]), "```", ""]
        lines += [_paragraphs(command.help or ""), ""]
        rows = [f"| `{_argument_name(param)}` | {_cell(param.help)} | |" for param in arguments]
        for param in options:
            names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
            kind = _without_none(kinds[param.name])
            value = "" if kind is bool else f" {_value_name(param, kind)}"
            rows.append(f"| {names}{value} | {_cell(param.help)} | {_default(param, kind)} |")
        if rows:
            lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines) + "\n"


def _commands(command: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Yield every command that does something, with the words that call it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(child, [*path, name])


def _without_none(kind: Any) -> Any:
    """Return what an option holds: `int` for `int | None`, the item for a list."""
    if get_origin(kind) is list:
        return get_args(kind)[0]
    parts = [part for part in get_args(kind) if part is not type(None)]
    return _without_none(parts[0]) if type(None) in get_args(kind) else kind


def _argument_name(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required or name.startswith("[") else f"[{name}]"


def _value_name(param: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    words = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return f"`{param.metavar or words.get(kind, 'TEXT')}`"


def _default(param: Any, kind: Any) -> str:
    if param.required:
        return "required"
    return "" if param.default is None or kind is bool or callable(param.default) else f"`{param.default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    """Return a help text without the marks of its layout."""
    return inspect.cleandoc(text.replace("\b", "").replace("\f", ""))


# ---- reference/metrics.md ----


def metrics_page() -> str:
    """Return the page of every number that a run writes."""
    from rhofast.training.metrics import LINE_KINDS, METRICS

    kinds = [f"| `{name}` | {_cell(meaning)} |" for name, meaning in LINE_KINDS.items()]
    rows = []
    for metric in METRICS.values():
        only = f" ({metric.only} only)" if metric.only else ""
        cells = [metric.unit, metric.meaning + only, metric.over_ranks, metric.high, metric.low]
        rows.append(f"| `{metric.name}` | " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(
        [
            "# Metrics",
            "",
            "A run writes `metrics.jsonl` in its folder, one JSON object per line. The numbers also go to the trackers",
            "that `train.trackers` names ([guide](../guides/tracking.md)). This page is made from",
            "`rhofast/training/metrics.py`.",
            "",
            "## Kinds of lines",
            "",
            "| `kind` | meaning |",
            "|---|---|",
            *kinds,
            "",
            "## Numbers",
            "",
            "| name | unit | meaning | over the ranks | a high value | a low value |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


# ---- reference/recipes.md ----


def recipes_page() -> str:
    """Return the page of the recipes that come with rhofast, in their own words."""
    from rhofast.ingest.recipes import describe_recipe, recipe_names

    lines = [
        "# Recipes",
        "",
        "A recipe lists the videos of a data set ([how to write one](../tutorials/add_a_dataset.md)).",
        "`rhofast recipes NAME` prints what stands here.",
        "",
    ]
    for name in recipe_names():
        lines += [f"## {name}", "", "```text", describe_recipe(name).rstrip(), "```", ""]
    return "\n".join(lines) + "\n"


# ---- notebooks/first_hour.md ----


def notebook_page() -> str:
    """Return the notebook as a page: what its cells say, their code, and what they printed and drew."""
    cells = json.loads((ROOT / "docs/notebooks/first_hour.ipynb").read_text(encoding="utf-8"))["cells"]
    head = "*This page is a notebook with its outputs: [download it](first_hour.ipynb) and run it.*"
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(_fenced("toml" if source.startswith("%%writefile") else "python", source))
        parts += [part for output in cell["outputs"] if (part := _shown(output))]
    parts.insert(1, head)
    return "\n\n".join(parts) + "\n"


def _shown(output: Mapping[str, Any]) -> str:
    """Return an output of a cell: its picture, or else its text."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img alt="what the cell draws" src="data:{kind};base64,{"".join(data[kind].split())}">'
    text = "".join(output.get("text", data.get("text/plain", ""))).strip("\n")
    return _fenced("text", text) if text.strip() else ""


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


GENERATED: dict[str, Callable[[], str]] = {
    "reference/config.md": config_page,
    "reference/cli.md": cli_page,
    "reference/metrics.md": metrics_page,
    "reference/recipes.md": recipes_page,
    "notebooks/first_hour.md": notebook_page,
}

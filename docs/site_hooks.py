"""What `mkdocs build` adds to the pages of docs/: README and other linked files, and pages made from the code.

In the repository a link goes to the file where it is, such as `../README.md`. On the site the pages of docs/ are at the
top, README.md is `index.md`, and every other linked file keeps its path.
"""

import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

import ichkit
from ichkit.cli.main import main
from ichkit.core.config import Config
from ichkit.core.train_config import PhaseConfig

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
# docs/run_tour.py writes behind the language which lines of the output are shown.
_FENCE = re.compile(r"^```text .*$", flags=re.MULTILINE)
_STARTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_WIDTH = 80
# Classes whose attributes are the keyword arguments of the Python functions.
_OPTIONS = (
    "ichkit.phantom.writer.PhantomOptions",
    "ichkit.stages.prepare.run.PrepareOptions",
    "ichkit.stages.train.run.TrainOptions",
    "ichkit.stages.stack.run.StackOptions",
    "ichkit.stages.scores.submit.SubmitOptions",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/ with those of the repository that a page links, and the pages made from the code."""
    for path in sorted(linked_files()):
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    for name, text in (("commands.md", commands()), ("settings.md", settings()), ("reference.md", reference())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page whose links go to where the files are on the site."""
    if page.file.abs_src_path is None:
        return markdown
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.relpath(site_path(resolve(source, link["path"])), here or ".")
        return target + (link["anchor"] or "")

    return _FENCE.sub("```text", _LINK.sub(moved, markdown))


def resolve(source: str, link: str) -> str:
    """The path in the repository of what a page links.

    Example:
        >>> resolve("docs/recipes/fiit2021.md", "../../README.md")
        'README.md'
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def site_path(path: str) -> str:
    """Where a file of the repository is on the site.

    Example:
        >>> site_path("docs/tour.md"), site_path("README.md"), site_path("CITATION.cff")
        ('tour.md', 'index.md', 'CITATION.cff')
    """
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked_files() -> set[str]:
    """Files outside docs/ that the pages link, README first of all, as paths in the repository."""
    found = set(_STARTS)
    for page in [*_STARTS, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]:
        for link in _LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
            path = resolve(page, link["path"])
            if not path.startswith("docs/") and (ROOT / path).is_file():
                found.add(path)
    return found


def commands() -> str:
    """The page of all commands: what `ichkit COMMAND --help` prints."""
    parts = ["# Commands", "What `ichkit COMMAND --help` prints. `ichkit help` lists the commands in groups."]
    for name, text in _helps(main, "ichkit"):
        parts.append(f"## `{name}`\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _helps(group: click.Group, prefix: str) -> Iterator[tuple[str, str]]:
    for name, command in sorted(group.commands.items()):
        full = f"{prefix} {name}"
        if isinstance(command, click.Group):
            yield from _helps(command, full)
        elif not command.hidden:
            with click.Context(command, info_name=full, max_content_width=_WIDTH, terminal_width=_WIDTH) as context:
                yield full, command.get_help(context).rstrip()


def settings() -> str:
    """The page of all settings, section by section: what the docstrings say, and the defaults."""
    parts = [
        "# Settings",
        "Every key of a configuration with its default: `--set section.key=value`, or a YAML file for `-c`. "
        "`ichkit config show NAME` prints the values of a shipped one; `configs/default.yaml` gives the reasons.",
        *_sections(Config(), ""),
        "## `train.phases`",
        "A list; a key that a phase leaves out has the value of `train`.",
        *_describe(PhaseConfig(), "train.phases.0"),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(section: BaseModel, path: str) -> Iterator[str]:
    if path:
        yield f"## `{path}`"
    yield from _describe(section, path)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _sections(value, f"{path}.{name}".lstrip("."))


def _describe(section: BaseModel, path: str) -> Iterator[str]:
    """What a section says, and a table of its keys."""
    yield inspect.cleandoc(type(section).__doc__ or "")
    rows = ["| key | default | choices |", "|---|---|---|"]
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not isinstance(value, BaseModel):
            choices = [f"`{word}`" for word in get_args(field.annotation) if isinstance(word, str)]
            shown = json.dumps(section.model_dump(mode="json")[name])
            rows.append(f"| `{path}.{name}` | `{shown}` | {', '.join(choices)} |".replace("`.", "`"))
    if len(rows) > len(["head", "rule"]):
        yield "\n".join(rows)


def reference() -> str:
    """The page of the public Python interface, from its docstrings."""
    parts = [
        "# Python reference",
        "All names of `ichkit`; [the page with examples](python.md) uses them in order. The options of a function are "
        "the attributes of a class below, given as keyword arguments.",
    ]
    for name in sorted(set(ichkit.__all__) - {"__version__"}, key=str.lower):
        parts.append(_directive(f"{getattr(ichkit, name).__module__}.{name}"))
    parts += ["## Options", *(_directive(name, heading_level=3) for name in _OPTIONS)]
    return "\n\n".join(parts) + "\n"


def _directive(name: str, **options: Any) -> str:
    lines = [f"::: {name}"]
    if options:
        lines += ["    options:", *(f"      {key}: {str(value).lower()}" for key, value in options.items())]
    return "\n".join(lines)

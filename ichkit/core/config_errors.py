"""Messages for an invalid configuration, each naming the file or the option in which the user wrote the value."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ichkit.core.errors import MAX_WORD, nearest, shorten
from ichkit.core.section import ConfigSection

Origins = Mapping[str, str]
"""Dotted key to where it was written: "--set", or the file."""
_MAX_PROBLEMS = 5
_MAX_MESSAGE = 300
_NAMED_KEY = re.compile(r"(?:config: )?([a-z_]+(?:\.[a-z_0-9]+)+)\b")
_UNPRINTABLE = "a number of thousands of digits"


class _Short(reprlib.Repr):
    """Shortens any value to at most about 80 characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 2, 4, 3, 4
        self.maxstring, self.maxlong, self.maxother = MAX_WORD, 30, MAX_WORD

    def repr_int(self, number: int, level: int) -> str:
        """The digits, or a placeholder if Python refuses to print so many."""
        try:
            return super().repr_int(number, level)
        except ValueError:
            return _UNPRINTABLE


def short(value: object) -> str:
    """A value for a message, shortened if it is long.

    Example:
        >>> short([1, 2, 3, 4, 5, 6])
        '[1, 2, 3, 4, ...]'
    """
    return shorten(_Short().repr(value), MAX_WORD + 20)


def explain(error: ValidationError, config: type[ConfigSection], origins: Origins, name: str) -> str:
    """One message for all problems, each with the key as the user would write it.

    Args:
        config: the class that was validated.
        origins: of every key that the user wrote.
        name: of the config, used for values without an origin.
    """
    problems = error.errors(include_url=False, include_context=False)
    lines = [_explain_one(problem, config, origins, name) for problem in problems[:_MAX_PROBLEMS]]
    more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
    return "; ".join(dict.fromkeys(_list_choices_once(lines))) + more


def _list_choices_once(lines: list[str]) -> Iterator[str]:
    """The lines; choices that an earlier one has listed are left out."""
    listed = set()
    for line in lines:
        text, mark, choices = line.partition(" Choices: ")
        yield text.rstrip(".") if mark and choices in listed else line
        listed.add(choices)


def list_settings(section: type[ConfigSection], prefix: str = "") -> Iterator[str]:
    """The dotted key of every value of a section and its subsections, in their order."""
    for name, info in section.model_fields.items():
        inside = _section_of(info.annotation)
        if inside is None or inside.__name__ == "PhaseConfig":
            yield prefix + name
        else:
            yield from list_settings(inside, f"{prefix}{name}.")


def _explain_one(problem: ErrorDetails, config: type[ConfigSection], origins: Origins, name: str) -> str:
    place = [str(part) for part in problem["loc"]]
    message = shorten(problem["msg"].removeprefix("Value error, "), _MAX_MESSAGE)
    if problem["type"] == "extra_forbidden":
        written, where = _find_origin(place, origins, name)
        return f"{where} {_shorten_key(written)}: unknown key{_suggest(place, written[len(place) :], config)}"
    value = problem["input"]
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = "expected a section of keys and values"
    found = "" if isinstance(value, dict | ConfigSection) else f", found {short(value)}"
    if named := _NAMED_KEY.match(message):  # the validator of a whole section names the key itself
        place, message, found = named[1].split("."), message[named.end() :].lstrip(" :"), ""
    place, where = _find_origin(place, origins, name)
    return f"{where} {_shorten_key(place) or 'config'}: {message}{found}"


def _suggest(place: list[str], rest: list[str], config: type[ConfigSection]) -> str:
    """The nearest key of the whole configuration as a question, else the keys of the section.

    Args:
        place: parts of the unknown key.
        rest: parts that the user wrote below it.
    """
    parent = config
    for part in place[:-1]:
        inside = _section_of(parent.model_fields[part].annotation) if part in parent.model_fields else None
        if inside is None:
            break
        parent = inside
    prefix, word = ".".join(place[:-1]), place[-1][:MAX_WORD]
    close = difflib.get_close_matches(word, list(parent.model_fields), n=1)
    keys = sorted(list_settings(config), key=lambda key: (key.count("."), key))
    if close:
        meant = ".".join([*place[:-1], close[0]])
        whole = ".".join([meant, *rest])
        return f", did you mean {whole if whole in keys else meant}?"
    ends = [key for key in keys if key.rpartition(".")[2] == word]
    nearer = ends or difflib.get_close_matches(f"{prefix}.{word}".strip(".")[:MAX_WORD], keys, n=1)
    if nearer:
        return f", did you mean {nearer[0]}?"
    return f". {nearest(word, parent.model_fields)}"


def _find_origin(place: list[str], origins: Origins, name: str) -> tuple[list[str], str]:
    """The key as the user wrote it, and where: the key itself, a section above it, or a key inside it."""
    for length in range(len(place), 0, -1):
        written = ".".join(place[:length])
        if written in origins:
            return place, origins[written]
    if inside := [written for written in origins if written.startswith(f"{'.'.join(place)}.")]:
        where = origins[inside[-1]]
        return (inside[-1].split(".") if where == "--set" else place), where
    return place, f"config {shorten(name)}:"


def _shorten_key(place: list[str]) -> str:
    return shorten(".".join(place))


def _section_of(annotation: Any) -> type[ConfigSection] | None:
    choices = [annotation, *get_args(annotation)]
    return next((one for one in choices if isinstance(one, type) and issubclass(one, ConfigSection)), None)

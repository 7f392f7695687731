"""The options --external, --labels and --subgroup of `ichkit prepare`."""

import functools
from collections.abc import Callable
from typing import Any

import click

from ichkit.cli.terminal import Settings


def external_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --external, --labels and --subgroup, and passes them as external sets and the training folder's label file.

    Goes below `common_options` and above `planned`.
    """

    @click.option(
        "--external",
        multiple=True,
        metavar="NAME=PATH",
        help="External test set: folder or zip file of DICOM; needs --labels; repeatable.",
    )
    @click.option(
        "--labels",
        multiple=True,
        metavar="[NAME=]CSV",
        help="Labels of --folder, or of an external set: slice_id or study_id, and one column per class; repeatable.",
    )
    @click.option(
        "--subgroup",
        "subgroups",
        multiple=True,
        metavar="COLUMN",
        help="Other column of the label files whose values become subgroups in scores and report; repeatable.",
    )
    @functools.wraps(command)
    def wrapped(settings: Settings, external: tuple[str, ...], labels: tuple[str, ...], **options: Any) -> Any:
        from ichkit.sources.external import pair_labels

        has_folder = options["folder"] is not None or options["source"] == "folder"
        sets, own = pair_labels(external, labels, has_folder=has_folder)
        return command(settings, external=sets, labels=own, **options)

    return wrapped

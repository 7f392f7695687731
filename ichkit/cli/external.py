"""Options that name external sets and whose label file is which."""

import functools
from collections.abc import Callable
from typing import Any

import click

from ichkit.cli.terminal import Settings


def external_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --external and --labels, and hands them over as external sets and the training folder's label file.

    Stands below `common_options` and above `with_dry_run`.
    """

    @click.option(
        "--external",
        multiple=True,
        metavar="NAME=PATH",
        help="An external set: scans to test on, a folder or a zip of DICOM, with --labels; repeatable.",
    )
    @click.option(
        "--labels",
        multiple=True,
        metavar="[NAME=]CSV",
        help="Labels of --folder or of an external set: slice_id or study_id, and a column per class; repeatable.",
    )
    @functools.wraps(command)
    def wrapped(settings: Settings, external: tuple[str, ...], labels: tuple[str, ...], **options: Any) -> Any:
        from ichkit.sources.external import pair_labels

        has_folder = options["folder"] is not None or options["source"] == "folder"
        sets, own = pair_labels(external, labels, has_folder=has_folder)
        return command(settings, external=sets, labels=own, **options)

    return wrapped

"""Which packages are installed, without loading any of them."""

import functools
import re
from importlib import metadata

from ichkit.core.errors import ConfigError
from ichkit.work.artifacts import package_versions

NOT_INSTALLED = "not installed"
EXTRAS = {"ray": "prepare on several machines", "kaggle": "submissions to the site"}
"""Extras that bring one package of the same name, and what for; the decoders of `dicom` are looked at one by one."""


@functools.cache
def required() -> tuple[str, ...]:
    """Distributions that the toolkit requires, by its metadata; none in a checkout that was never installed."""
    try:
        lines = metadata.requires("ichkit") or []
    except metadata.PackageNotFoundError:
        lines = []
    return tuple(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line)


def check_packages() -> None:
    """Checks that every required package is installed, before an import fails.

    Raises:
        ConfigError: something is not.
    """
    missing = [name for name in required() if _version(name) == NOT_INSTALLED]
    if missing:
        raise ConfigError(
            f"packages: expected {', '.join(missing)}, not installed. Run `pip install {' '.join(missing)}`, or "
            "install ichkit again, which installs them."
        )


def required_versions() -> dict[str, str]:
    """Versions of Python, this package and every required one; "not installed" for this package in a checkout."""
    return package_versions() | {name: _version(name) for name in required()}


def extra_versions() -> dict[str, str]:
    """Versions of the packages of `EXTRAS`, or "not installed"."""
    return {name: _version(name) for name in EXTRAS}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED

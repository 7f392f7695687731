"""The packages of ichkit; everything else that is said of it stands in pyproject.toml."""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class ReproducibleSdist(sdist):
    """A source archive whose bytes depend only on its files and SOURCE_DATE_EPOCH, as those of the wheel do."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, **owner):
        if format != "gztar" or root_dir or "SOURCE_DATE_EPOCH" not in os.environ:
            return super().make_archive(base_name, format, root_dir, base_dir, **owner)
        seconds = int(os.environ["SOURCE_DATE_EPOCH"])

        def without_origin(member):
            member.mtime, member.mode = seconds, 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return member

        path = Path(f"{base_name}.tar.gz")
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=seconds) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for member in sorted(Path(base_dir).rglob("*")):
                archive.add(member, recursive=False, filter=without_origin)
        return str(path)


setup(
    cmdclass={"sdist": ReproducibleSdist},
    # configs and pipelines are top-level folders of the repository and sub-packages of the wheel.
    packages=[*find_packages(include=["ichkit", "ichkit.*"]), "ichkit.configs", "ichkit.pipelines"],
    package_dir={"ichkit": "ichkit", "ichkit.configs": "configs", "ichkit.pipelines": "pipelines"},
    package_data={
        "ichkit.configs": ["*.yaml"],
        "ichkit.pipelines": ["*.yaml"],
        "ichkit": ["py.typed"],
        "": ["*.j2", "*.js"],
        "ichkit.stages.report": ["checklists/*.csv"],
    },
)

"""The packages of ichkit; everything else that is said of it stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
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

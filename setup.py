"""Metadata of the ichkit package; `pip install .` gives the command `ichkit`."""

from pathlib import Path

from setuptools import find_packages, setup

packages = find_packages(include=["ichkit", "ichkit.*"])

setup(
    name="ichkit",
    version="0.1.0",
    description="Intracranial hemorrhage detection on head CT: from DICOM to the leaderboard, honestly stacked",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # configs and pipelines are top-level folders of the repository and sub-packages of the wheel.
    packages=[*packages, "ichkit.configs", "ichkit.pipelines"],
    package_dir={"ichkit": "ichkit", "ichkit.configs": "configs", "ichkit.pipelines": "pipelines"},
    package_data={
        "ichkit.configs": ["*.yaml"],
        "ichkit.pipelines": ["*.yaml"],
        "ichkit": ["py.typed"],
        "": ["*.j2"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "timm>=1.0.20",
        "albumentations==2.0.8",
        "pydicom>=3.0.2",
        "lightgbm>=4.5",
        "pandas>=2.2",
        "numba>=0.60",
        "click>=8.1",
        "lightning>=2.4",
        "pydantic>=2.7",
        "PyYAML>=6",
        "blosc2>=3",
        "pyarrow>=15",
        "joblib>=1.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "safetensors>=0.4",
        "rich>=13",
        "matplotlib>=3.8",
        "Jinja2>=3.1",
    ],
    extras_require={
        "dicom": ["pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.3", "pyjpegls>=1.4", "python-gdcm>=3.0.24"],
        "nifti": ["nibabel>=5"],
        "kaggle": ["kaggle>=1.6"],
        "ray": ["ray>=2.9"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "pylibjpeg>=2.0",
            "pylibjpeg-openjpeg>=2.3",
            "pyjpegls>=1.4",
            "nibabel>=5",
        ],
    },
    entry_points={"console_scripts": ["ichkit = ichkit.cli.main:main"]},
)

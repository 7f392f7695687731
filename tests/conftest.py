"""What every test shares: where real files are, how laws are tried, and one small phantom with its prepared store."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from support.commands import TINY, do, phantom_options

from ichkit import write_phantom
from ichkit.core.config import Config, load_config
from ichkit.stages.prepare import run as prepare
from ichkit.work.folder import WorkFolder

# Laws are tried on the same examples in every run, and nothing of them is kept in the checkout.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "ichkit-hypothesis")
settings.register_profile(
    "ichkit",
    derandomize=True,
    database=None,
    deadline=None,  # kernels compile on first use
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ichkit")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real files, named by ICHKIT_REAL_DATA; tests that need it are skipped without it."""
    named = os.environ.get("ICHKIT_REAL_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("ICHKIT_REAL_DATA names no folder with real files")
    return Path(named)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training, 6 test and 6 CQ500 studies of 64 x 64 pixels: OUT/rsna and OUT/cq500. Never written to."""
    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, studies=16, test_studies=6, cq500_studies=6, size=64, seed=0, workers=2)
    return root


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The demo's config, as small as it gets."""
    return load_config("demo", (*TINY, "prepare.size=null"))


@pytest.fixture(scope="session")
def prepared_once(phantom_root: Path, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> WorkFolder:
    """The store of that phantom; never written to."""
    work = WorkFolder(tmp_path_factory.mktemp("work"))
    do(prepare, tiny_config, work, phantom_options(phantom_root))
    return work


@pytest.fixture
def prepared_work(prepared_once: WorkFolder, tmp_path: Path) -> WorkFolder:
    """A work folder of one's own with that store."""
    shutil.copytree(prepared_once.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")

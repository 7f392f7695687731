"""The notebook of a code competition: what it needs is in the bundle, and it runs without an index or a network."""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest
from support.trained import CONFIG, make_trained_work

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.stages.kernel import run as kernel
from ichkit.stages.kernel import wheels
from ichkit.work.folder import WorkFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle and a notebook of a tiny run."""
    root = tmp_path_factory.mktemp("kernel")
    work = make_trained_work(root / "work")
    kernel.run(kernel.plan(CONFIG, work, kernel.KernelOptions("demo", root / "out", user="me")))
    return root / "out"


def cells_of(made):
    notebook = json.loads((made / "notebook" / "inference.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_bundle_and_the_metadata_name_each_other_and_ask_for_no_internet(made):
    dataset = json.loads((made / "bundle" / "dataset-metadata.json").read_text())
    metadata = json.loads((made / "notebook" / "kernel-metadata.json").read_text())
    assert metadata["dataset_sources"] == [dataset["id"]] == ["me/ichkit-demo"]
    assert metadata["enable_internet"] is False
    assert (made / "notebook" / metadata["code_file"]).is_file()
    assert "/kaggle/input/ichkit-demo" in cells_of(made)[0]
    assert len(list((made / "bundle" / "wheels").glob("ichkit-*.whl"))) == 1
    pinned = (made / "bundle" / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in pinned)
    assert not any(line.startswith("python==") for line in pinned)


@pytest.mark.slow
def test_the_notebook_installs_offline_and_fills_the_sample_submission(made, phantom_root, tmp_path):
    place = tmp_path / "venv"
    venv.create(place, with_pip=True, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    # The packages of this environment, without ichkit, stand for those of the site's image.
    image = tmp_path / "image"
    image.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith("ichkit"):
            (image / package.name).symlink_to(package)
    (own / "image.pth").write_text(f"{image}\n")
    script = tmp_path / "inference.py"
    script.write_text("\n\n".join(cells_of(made)))
    inside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ICHKIT_PLUGINS")}
    inside |= {"ICHKIT_BUNDLE": str(made / "bundle"), "ICHKIT_RSNA": str(phantom_root / "rsna"), "PIP_NO_INDEX": "1"}
    inside |= {"ICHKIT_OUT": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [place / "bin" / "python", script], env=inside, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where = subprocess.run(
        [place / "bin" / "python", "-c", "import ichkit; print(ichkit.__file__)"],
        env=inside, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(place) in where.stdout
    written = pd.read_csv(tmp_path / "submission.csv")
    sample = pd.read_csv(next((phantom_root / "rsna").rglob("stage_2_sample_submission.csv")))
    assert written["ID"].equals(sample["ID"])
    # As in `submit`, every slice of every series that can be read: of the test scans one file is truncated.
    slices = pd.read_csv(tmp_path / "predictions" / "slices.csv").set_index("slice_id")
    missing = ~sample["ID"].str.rpartition("_")[0].isin(slices.index)
    assert f"{missing.sum()} of {len(sample)} rows without a prediction" in done.stdout
    assert missing.sum() == 6
    parts = written["ID"].str.rpartition("_")
    means = {name: slices[f"p_{name}"].mean() for name in parts[2].unique()}
    for slice_id, name, label, is_missing in zip(parts[0], parts[2], written["Label"], missing, strict=True):
        expected = means[name] if is_missing else slices.loc[slice_id, f"p_{name}"]
        assert label == pytest.approx(expected)


def test_what_cannot_be_bundled_is_refused(made, tmp_path):
    work = WorkFolder(made.parent / "work")
    for options, message in (
        ({"wheel": tmp_path / "none.whl"}, "expected a file that ends in .whl"),
        ({"packages": ("../x",)}, "expected the name of a package"),
        ({"packages": ("no-such-package",)}, "kernel --with: no-such-package is not installed here"),
    ):
        with pytest.raises(ConfigError) as caught:
            kernel.plan(CONFIG, work, kernel.KernelOptions("demo", tmp_path / "out", **options))
        assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_wheel_that_cannot_be_had_leaves_nothing_behind(made, tmp_path, monkeypatch):
    def fail(*_words):
        raise ArtifactError("kernel: pip download failed")

    planned = kernel.plan(
        CONFIG, WorkFolder(made.parent / "work"), kernel.KernelOptions("demo", tmp_path / "out", packages=("numpy",))
    )
    monkeypatch.setattr(wheels, "_pip", fail)
    with pytest.raises(ArtifactError, match="pip download failed"):
        kernel.run(planned)
    assert not (tmp_path / "out").exists()

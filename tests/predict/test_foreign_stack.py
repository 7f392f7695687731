"""Second stages made to harm, in an exported folder: `predict --model` ends with exit 2 and one message."""

import json
import resource
import shutil

import numpy as np
import pytest
from support.dicoms import write_series
from support.models import STACK, TREE, make_stacked_model, predict, seal

MOST_MEGABYTES = 300
FUSION, SEQUENCE, BOOSTERS = (f"{STACK}/{name}/fold0" for name in ("fusion", "sequence", "lightgbm"))
BLEND = f"{STACK}/blend.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A good model with a second stage, and three slices to predict; neither is written to."""
    root = tmp_path_factory.mktemp("foreign")
    make_stacked_model(root / "model")
    write_series(root / "scans", 3)
    return root


@pytest.fixture
def model(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


def change(name, **values):
    def apply(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def change_chain(**values):
    def apply(folder):
        note = json.loads((folder / BLEND).read_text())
        note["chains"][0] |= values
        (folder / BLEND).write_text(json.dumps(note))

    return apply


def change_fits(name, fit):
    def apply(folder):
        note = json.loads((folder / BLEND).read_text())
        note["chains"][0]["calibrations"][name] = fit
        (folder / BLEND).write_text(json.dumps(note))

    return apply


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def grow(name, num_bytes):
    def apply(folder):
        with (folder / name).open("ab") as file:
            file.truncate(num_bytes)

    return apply


def cross(name):
    return lambda folder: shutil.copy(folder / SEQUENCE / "networks.safetensors", folder / name)


def project(array):
    def apply(folder):
        change(BLEND, has_embeddings=True)(folder)
        path = folder / STACK / "projections" / "demo" / "fold0.npy"
        path.parent.mkdir(parents=True)
        path.write_bytes(array)

    return apply


SAME = {"slope": [1.0] * 6, "intercept": [0.0] * 6}
HUGE_HEADER = (
    b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 1000000), }".ljust(118)
)
BLENDS = {
    "no JSON": write(BLEND, b"{"),
    "a list": write(BLEND, b"[]"),
    "nested without end": write(BLEND, b"[" * 100_000),
    "a foreign task": change(BLEND, task="strokes"),
    "no chains": change(BLEND, chains=[]),
    "a million chains": change(BLEND, chains=[0] * 10**6),
    "chains of numbers": change(BLEND, chains=[1, 2]),
    "a foreign run": change(BLEND, runs=["other"]),
    "a foreign member": change(BLEND, members=["base", "oracle", "fusion", "lightgbm"]),
    "a fold model that leads out": change_chain(name="../../../../etc"),
    "a fold model at an absolute path": change_chain(name="/etc"),
    "a fold that is not there": change_chain(fold=7),
    "weights of another shape": change_chain(weights=[[1.0] * 6]),
    "weights without end": change_chain(weights=[[1.0] * 1000] * 1000),
    "weights that are no numbers": change_chain(weights=[[float("nan")] * 6] * 4),
    "no base": change_chain(calibrations={"fusion": SAME}),
    "a foreign stacker": change_fits("oracle", SAME),
    "a stacker that leads out": change_fits("../fusion", SAME),
    "a slope that is not finite": change_fits("base", {"slope": [float("inf")] * 6, "intercept": [0.0] * 6}),
    "a slope of many rows": change_fits("base", {"slope": [[[1.0] * 6]] * 10_000, "intercept": [0.0] * 6}),
    "a slope too short": change_fits("fusion", {"slope": [1.0], "intercept": [0.0]}),
    "shares of brain that are not given": change(BLEND, has_brain_shares=True, has_embeddings=True),
}
PARTS = {
    "networks that are none": write(f"{FUSION}/networks.safetensors", b"x" * 99),
    "networks that claim a large header": write(f"{FUSION}/networks.safetensors", b"\xff" * 7 + b"\x00{}"),
    "networks of another kind": cross(f"{FUSION}/networks.safetensors"),
    "networks too large": grow(f"{FUSION}/networks.safetensors", 257 * 1024**2),
    "networks that are gone": lambda folder: (folder / FUSION / "networks.safetensors").unlink(),
    "an absurd window": change(f"{FUSION}/fusion.json", window=10**9),
    "an even window": change(f"{FUSION}/fusion.json", window=4),
    "absurd widths": change(f"{FUSION}/fusion.json", widths=[10**6, 10**6]),
    "widths that are text": change(f"{FUSION}/fusion.json", widths=["4", "4"]),
    "one width": change(f"{FUSION}/fusion.json", widths=[4]),
    "networks without end": change(f"{FUSION}/fusion.json", num_seeds=10**9),
    "fewer networks than none": change(f"{FUSION}/fusion.json", num_seeds=-1),
    "more networks than there are": change(f"{FUSION}/fusion.json", num_seeds=5),
    "a center of another shape": change(f"{FUSION}/fusion.json", center=[[[0.0]] * 1000] * 100),
    "a scale of zeros": change(f"{FUSION}/fusion.json", scale=[[0.0] * 6]),
    "shares of another shape": change(f"{FUSION}/fusion.json", shares=[1.0] * 7),
    "shares that are no numbers": change(f"{FUSION}/fusion.json", shares=[float("nan")] * 6),
    "an absurd hidden size": change(f"{SEQUENCE}/sequence.json", hidden=10**6),
    "a negative hidden size": change(f"{SEQUENCE}/sequence.json", hidden=-4),
    "a description that is a list": write(f"{SEQUENCE}/sequence.json", b"[]"),
    "boosters that are gone": lambda folder: (folder / BOOSTERS / "class5.txt").unlink(),
    "a booster that is none": write(f"{BOOSTERS}/class0.txt", b"\x00\xff" * 100),
    "a booster in a circle": write(f"{BOOSTERS}/class0.txt", TREE.replace("left_child=1", "left_child=0").encode()),
    "a booster of another feature": write(f"{BOOSTERS}/class0.txt", TREE.replace("=0 1", "=0 99999").encode()),
    "a leaf that is no number": write(f"{BOOSTERS}/class0.txt", TREE.replace(".1 .2 .3", "nan nan nan").encode()),
    "a booster too large": grow(f"{BOOSTERS}/class0.txt", 65 * 1024**2),
    "boosters with an absurd window": change(f"{BOOSTERS}/lightgbm.json", window=10**9),
    "boosters of foreign features": change(f"{BOOSTERS}/lightgbm.json", groups=["oracle"]),
    "more boosters than classes": change(f"{BOOSTERS}/lightgbm.json", strengths=["weak"] * 1000),
    "a projection that is none": project(b"x"),
    "a projection of objects": project(
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(118) + b"x"
    ),
    "a projection of terabytes": project(HUGE_HEADER),
}
QUICK = (
    "nested without end",
    "a fold model that leads out",
    "a foreign stacker",
    "weights of another shape",
    "a slope of many rows",
    "an absurd window",
    "networks without end",
    "a booster in a circle",
    "a booster too large",
    "a projection of terabytes",
)


def test_the_model_predicts_before_it_is_changed(made, model, tmp_path):
    assert "1 study, with demo" in predict(made, model, tmp_path, 0)
    assert len(np.loadtxt(tmp_path / "out" / "slices.csv", str, delimiter=",")) == 4


def each(names):
    """All of them, in the short suite the quick ones."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("what", each([*BLENDS, *PARTS]))
def test_a_harmful_second_stage_is_refused_in_bounded_memory(what, made, model, tmp_path):
    (BLENDS | PARTS)[what](model)
    seal(model, stack="demo", kind="blend")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    printed = predict(made, model, tmp_path, 2)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEGABYTES
    assert printed.count("ichkit: ") == 1
    assert len(printed) < 2000
    assert not (tmp_path / "out" / "slices.csv").exists()

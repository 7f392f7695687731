"""Model folders made to harm: `predict --model` ends with exit 2 and one message, in bounded memory."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.dicoms import write_series
from support.models import FOLD, make_model, predict, seal

from ichkit.core.errors import ArtifactError
from ichkit.engine.inference import read_card
from ichkit.stacking.trees import read_trees


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A good model of one fold with random weights, and three slices to predict; neither is written to."""
    root = tmp_path_factory.mktemp("foreign")
    make_model(root / "model")
    write_series(root / "scans", 3)
    return root


@pytest.fixture
def model(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


def change_card(**values):
    def apply(folder):
        path = folder / FOLD / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def change_weights(change):
    def apply(folder):
        path = folder / FOLD / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def grow(name, num_bytes):
    def apply(folder):
        with (folder / name).open("ab") as file:
            file.truncate(num_bytes)

    return apply


def make_nan(tensors):
    tensors["backbone.conv1.0.weight"][0, 0, 0, 0] = float("nan")


def reshape(tensors):
    tensors["backbone.conv1.0.weight"] = tensors["backbone.conv1.0.weight"][:1].contiguous()


def swell(tensors):
    tensors["backbone.extra"] = torch.zeros(1)


HARMFUL = {
    "card is no JSON": (write(f"{FOLD}/model.json", b"{"), "expected the description of a network"),
    "card is a list": (write(f"{FOLD}/model.json", b"[1]"), "expected the description of a network"),
    "card without end": (write(f"{FOLD}/model.json", b"[" * 100_000), "expected the description of a network"),
    "card is binary": (write(f"{FOLD}/model.json", b"\xff\xfe\x00"), "expected the description of a network"),
    "absurd images": (change_card(image_size=10**6), "image_size and prepare_size must be 1 to 4096"),
    "absurd store": (change_card(prepare_size=10**6), "image_size and prepare_size must be 1 to 4096"),
    "arguments that read a file": (change_card(backbone_args={"checkpoint_path": "x.pth"}), "not an argument of the"),
    "arguments without names": (change_card(backbone_args=[1]), "backbone_args must be a mapping"),
    "absurd batch": (change_card(batch_size=10**9), "batch_size times image_size squared"),
    "a size that is text": (change_card(image_size="32"), "image_size and prepare_size must be"),
    "HU of more than 16 bits": (change_card(hull_hu=[-100, 2**15]), "two ascending 16-bit HU values"),
    "HU turned round": (change_card(hull_hu=[2000, -800]), "two ascending 16-bit HU values"),
    "unknown augmentation": (change_card(tta="sideways"), 'tta: unknown "sideways"'),
    "foreign step": (change_card(steps=["os.system"]), 'prepare.crop: unknown "os.system"'),
    "steps without end": (change_card(steps=["head"] * 10_000), "steps must be at most 10 names"),
    "a step that is a number": (change_card(steps=[1]), "steps must be at most 10 names"),
    "unknown mean of views": (change_card(tta_average="max"), 'tta_average must be "probability" or "logit"'),
    "augmentation that is a list": (change_card(tta=["none"]), "tta: unknown"),
    "foreign backbone": (change_card(backbone="os.system"), 'train.backbone: unknown "os.system"'),
    "large backbone": (change_card(backbone="vit_giant_patch14_224"), "tensors are missing or have another shape"),
    "foreign task": (change_card(task="strokes"), 'task: unknown "strokes"'),
    "foreign field": (change_card(command="x"), "expected the description of a network"),
    "foreign channels": (change_card(channels={"kind": "none"}), "channels"),
    "weights are no weights": (write(f"{FOLD}/model.safetensors", b"x" * 100), "expected the weights"),
    "weights claim a large header": (write(f"{FOLD}/model.safetensors", b"\xff" * 7 + b"\x00" + b"{}"), "the weights"),
    "weights are gone": (lambda folder: (folder / FOLD / "model.safetensors").unlink(), "expected the weights"),
    "weights of another shape": (change_weights(reshape), " tensors are missing or have another shape"),
    "weights too many": (change_weights(swell), "1 do not belong to this network"),
    "weights without numbers": (change_weights(make_nan), "a weight is not finite"),
    "weights too large": (grow(f"{FOLD}/model.safetensors", 9 * 1024**3), "expected at most 8192 MB, found more"),
    "a large card": (grow(f"{FOLD}/model.json", 3 * 1024**3), "expected at most 16 MB, found more"),
}
FACTS = {
    "a run that leads out": ({"runs": ["../../runs/demo"]}, "run: expected a name of at most 200"),
    "a stack that leads out": ({"stack": "/etc"}, "stack: expected a name of at most 200"),
    "runs that are no list": ({"runs": 5}, "found one that cannot (TypeError)"),
    "a run that is missing": ({"runs": ["other"]}, "expected the description of a network"),
    "no folds": ({"folds": []}, "at least one run and fold"),
    "a fold that is text": ({"folds": ["x"]}, "found one that cannot (ValueError)"),
    "a stack that is missing": ({"stack": "gone", "kind": "blend"}, "not readable"),
    "another task": ({"task": ["x"] * 3}, "expected a model for the task hemorrhage"),
}


def test_the_model_predicts_before_it_is_changed(made, model, tmp_path):
    assert "1 study, with demo" in predict(made, model, tmp_path, 0)


def test_a_card_of_before_there_were_steps_means_whole_pictures(made, model, tmp_path):
    path = model / FOLD / "model.json"
    card = json.loads(path.read_text())
    assert card.pop("steps") == []
    path.write_text(json.dumps(card))
    seal(model)
    assert read_card(path.parent).steps == ()
    assert "1 study, with demo" in predict(made, model, tmp_path, 0)


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_file_is_refused(what, made, model, tmp_path):
    change, message = HARMFUL[what]
    change(model)
    seal(model)
    check_refusal(predict(made, model, tmp_path, 2), message, tmp_path)


@pytest.mark.parametrize("what", FACTS)
def test_a_harmful_manifest_is_refused(what, made, model, tmp_path):
    facts, message = FACTS[what]
    seal(model, **facts)
    check_refusal(predict(made, model, tmp_path, 2), message, tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b"\xff", b'{"files": 5}', b"0"])
def test_a_manifest_that_is_none_is_refused(content, made, model, tmp_path):
    (model / "manifest.json").write_bytes(content)
    check_refusal(predict(made, model, tmp_path, 2), str(model), tmp_path)


@pytest.mark.parametrize("name", ["../secret.txt", "runs/../../secret.txt", "/etc/hostname"])
def test_a_manifest_that_lists_a_file_outside_is_refused_before_the_file_is_read(name, made, model, tmp_path):
    (model.parent / "secret.txt").write_text("x")
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "num_bytes": 1}
    (model / "manifest.json").write_text(json.dumps(manifest))
    message = "not a manifest (a file outside the folder). Run `ichkit export`."
    check_refusal(predict(made, model, tmp_path, 2), message, tmp_path)


def check_refusal(printed, message, tmp_path):
    assert message in printed
    assert printed.count("ichkit: ") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "slices.csv").exists()


def tree_text(**changes):
    """A LightGBM text of one tree with two nodes and three leaves."""
    lines = {
        "split_feature": "0 1",
        "split_gain": "1 1",
        "threshold": "0 0",
        "decision_type": "8 8",
        "left_child": "1 -1",
        "right_child": "-2 -3",
        "leaf_value": "1 2 3",
    } | changes
    return "tree\nversion=v4\n\nTree=0\n" + "\n".join(f"{k}={v}" for k, v in lines.items()) + "\n\nend of trees\n"


def test_a_tree_is_read_as_it_stands():
    features = np.array([[-1, -1], [-1, 1], [1, 0]], np.float32)
    assert read_trees(tree_text(), "x").predict(features).tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"left_child": "0 -1"},  # a circle
        {"left_child": "1 0"},
        {"left_child": "9 -1"},
        {"right_child": "-2 -900000000"},
        {"leaf_value": "1"},
        {"left_child": "1"},
        {"split_feature": "0 -5"},
        {"decision_type": "8"},
    ],
)
def test_a_tree_that_leads_outside_or_in_a_circle_is_refused(changes):
    with pytest.raises(ArtifactError, match="x: "):
        read_trees(tree_text(**changes), "x")


def test_a_split_on_a_feature_that_is_not_there_is_refused():
    with pytest.raises(ArtifactError, match="expected at most 2 features"):
        read_trees(tree_text(split_feature="0 900000000"), "x").predict(np.zeros((1, 2), np.float32))

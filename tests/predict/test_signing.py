"""Signed exports: made with one key, checked with its public key, and refused for every difference; no network."""

import shutil
import sys

import pytest

pytest.importorskip("model_signing", reason="needs model-signing (extra sign)")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.commands import call
from support.dicoms import write_series
from support.models import FOLD, make_model
from support.trained import CONFIG, make_trained_work

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.stages.predict import export
from ichkit.stages.predict.plan import PredictOptions, plan
from ichkit.stages.predict.signing import SIGNATURE_NAME, check_private_key, check_signature, sign_export
from ichkit.stages.watch.plan import WatchOptions
from ichkit.stages.watch.plan import plan as plan_watch
from ichkit.work.artifacts import read_manifest
from ichkit.work.folder import WorkFolder


def write_keys(folder, name="key", key=None, password=None):
    """(private, public) key files as openssl writes them."""
    key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=secret)
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A signed model, its keys, those of somebody else, and scans; never written to."""
    root = tmp_path_factory.mktemp("signed")
    write_keys(root)
    write_keys(root, "other")
    (make_model(root / "model") / "config.yaml").write_text("runs: {}")
    sign_export(root / "model", root / "key.pem")
    write_series(root / "scans", 3)
    return root


@pytest.fixture
def model(made, tmp_path):
    """A copy under another name, as it arrives somewhere else."""
    shutil.copytree(made / "model", tmp_path / "renamed")
    return tmp_path / "renamed"


def test_a_copy_of_a_signed_model_is_accepted(made, model):
    check_signature(model, made / "key.pub")


def test_the_signature_names_no_path_and_holds_no_key(made):
    text = (made / "model" / SIGNATURE_NAME).read_text()
    assert str(made) not in text
    assert "PRIVATE" not in text


def append(name):
    def change(folder):
        with (folder / name).open("ab") as file:
            file.write(b" ")

    return change


def exchange_signature(folder):
    path = folder / SIGNATURE_NAME
    path.write_text(path.read_text().replace("A", "B"))


def change_all(folder):
    (folder / "a'\"b.txt").write_text("1")
    (folder / "config.yaml").unlink()
    append(f"{FOLD}/model.json")(folder)
    append(f"{FOLD}/model.safetensors")(folder)


def link_weights(folder):
    path = folder / FOLD / "model.safetensors"
    path.rename(folder.parent / "weights")
    path.symlink_to(folder.parent / "weights")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (append(f"{FOLD}/model.safetensors"), rf"not those that were signed \(changed: {FOLD}/model.safetensors\)"),
        (append("manifest.json"), r"\(changed: manifest.json\)"),
        (lambda folder: (folder / "extra.py").write_text("1"), r"\(added: extra.py\)"),
        (lambda folder: (folder / FOLD / "model.json").unlink(), rf"\(missing: {FOLD}/model.json\)"),
        (lambda folder: (folder / ".git").mkdir() or (folder / ".git" / "x").write_text("1"), r"\(added: .git/x\)"),
        (
            change_all,
            rf"\(added: a'\"b.txt; missing: config.yaml; changed: {FOLD}/model.json, {FOLD}/model.safetensors\)",
        ),
        (link_weights, "is damaged or was changed"),
        (exchange_signature, "is damaged or was changed"),
        (lambda folder: (folder / SIGNATURE_NAME).write_bytes(b"\x00"), "is damaged or was changed"),
        (lambda folder: (folder / SIGNATURE_NAME).write_text("{}"), "is damaged or was changed"),
        (lambda folder: (folder / SIGNATURE_NAME).unlink(), r"expected a signature \(model.sig\), found none"),
    ],
    ids=["weights", "manifest", "added", "missing", "git", "all", "link", "exchanged", "bytes", "empty", "none"],
)
def test_every_difference_is_refused_by_name(made, model, change, said):
    change(model)
    with pytest.raises(ArtifactError, match=said):
        check_signature(model, made / "key.pub")


def test_the_signature_of_another_key_is_refused(made, model):
    with pytest.raises(ArtifactError, match=r"by the key of .*other.pub, found one by another key"):
        check_signature(model, made / "other.pub")


def test_files_that_are_no_such_key_are_refused(made, tmp_path):
    (tmp_path / "text").write_text("no key")
    private, public = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    _, odd = write_keys(tmp_path, "odd", ec.generate_private_key(ec.SECP256K1()))
    for path, said in (
        (tmp_path / "none", "it cannot be read"),
        (tmp_path / "text", "expected a public key"),
        (made / "key.pem", "found a private one: keep it secret"),
        (public, "expected a public key on an elliptic curve"),
        (odd, "expected a public key on an elliptic curve"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_signature(made / "model", path)
    for path in (tmp_path / "none", tmp_path / "text", made / "key.pub", private):
        with pytest.raises(ConfigError, match=r"--sign: expected a .*key"):
            check_private_key(path)


def test_a_key_with_a_password_needs_it(tmp_path, monkeypatch):
    private, public = write_keys(tmp_path, password=b"secret")
    with pytest.raises(ConfigError, match="has a password. Set it in ICHKIT_SIGN_PASSWORD"):
        check_private_key(private)
    monkeypatch.setenv("ICHKIT_SIGN_PASSWORD", "wrong")
    with pytest.raises(ConfigError, match="Is ICHKIT_SIGN_PASSWORD right"):
        check_private_key(private)
    monkeypatch.setenv("ICHKIT_SIGN_PASSWORD", "secret")
    sign_export(make_model(tmp_path / "model"), private)
    check_signature(tmp_path / "model", public)


def options_of(made, model, **given):
    return PredictOptions(made / "scans", str(model), made.parent / "out", **given)


def test_predict_and_watch_check_the_model_and_the_first_model_before_they_read_anything(made, model, tmp_path):
    work = WorkFolder(tmp_path / "none")
    plan(CONFIG, work, options_of(made, model, verify=made / "key.pub", requires_signature=True))
    unsigned = make_model(tmp_path / "unsigned")
    with pytest.raises(ArtifactError, match="unsigned: expected a signature"):
        plan(CONFIG, work, options_of(made, model, verify=made / "key.pub", gate=unsigned))
    with pytest.raises(ArtifactError, match="by another key"):
        plan(CONFIG, work, options_of(made, model, verify=made / "other.pub"))
    watching = {"path": made / "scans", "model": str(unsigned), "out": tmp_path / "watched"}
    with pytest.raises(ArtifactError, match="unsigned: expected a signature"):
        plan_watch(CONFIG, work, WatchOptions(**watching, verify=made / "key.pub"))
    with pytest.raises(ConfigError, match="--require-signature: name the public key"):
        plan_watch(CONFIG, work, WatchOptions(**watching, requires_signature=True))
    with pytest.raises(ConfigError, match="only exports are signed"):
        plan(CONFIG, work, options_of(made, "default-blend", verify=made / "key.pub"))


def test_the_environment_of_a_machine_refuses_what_is_not_signed(made, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ICHKIT_REQUIRE_SIGNATURE", "1")
    words = ["predict", made / "scans", "--model", model, "--out", tmp_path / "out", "--dry-run"]
    assert "name the public key of the model with --verify KEY" in call(*words, code=2)
    monkeypatch.setenv("ICHKIT_VERIFY", str(made / "key.pub"))
    assert "with demo" in call(*words)
    (model / "added").write_text("")
    assert "(added: added)" in call(*words, code=2)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_extra(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"--verify: needs model-signing.*pip install 'ichkit\[sign\]'"):
        check_signature(made / "model", made / "key.pub")


@pytest.mark.slow
def test_an_export_is_signed_with_its_card_and_one_made_anew_is_not(tmp_path):
    work, (private, public) = make_trained_work(tmp_path / "work"), write_keys(tmp_path)
    asked = {"model": "demo", "out": tmp_path / "export"}
    export.run(export.plan(CONFIG, work, export.ExportOptions(**asked, sign=private)))
    check_signature(tmp_path / "export", public)
    assert SIGNATURE_NAME not in read_manifest(tmp_path / "export").files
    export.run(export.plan(CONFIG, work, export.ExportOptions(**asked)))
    assert not (tmp_path / "export" / SIGNATURE_NAME).exists()

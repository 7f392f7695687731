"""Signatures of exports (OpenSSF Model Signing): made with a private key, checked with its public key, without network.

The signature is a file in the export, over the SHA-256 of every other file in it, the manifest included.
"""

import os
import re
from pathlib import Path
from typing import Any

from ichkit.core.errors import ArtifactError, ConfigError

SIGNATURE_NAME = "model.sig"
PASSWORD_VARIABLE = "ICHKIT_SIGN_PASSWORD"
_NEEDS = "needs model-signing, of which {package} is not installed. Run pip install 'ichkit[sign]'."
_MAKE_KEYS = (
    "Make a pair with `openssl ecparam -name prime256v1 -genkey -noout -out private.pem` and `openssl ec -in "
    "private.pem -pubout -out public.pem`."
)
_MISMATCH = "Signature mismatch"
# The package lists differences as the repr of a list of sentences: quoted either way, with backslashes.
_END = r"(?:['\"], ['\"](?:Missing|Hash)|['\"]\]$)"
_DIFFERENCES = {
    "added": re.compile(rf"Extra files found in model '.*?': (.+?){_END}", re.DOTALL),
    "missing": re.compile(rf"Missing files in model '.*?': (.+?){_END}", re.DOTALL),
    "changed": re.compile(r"Hash mismatch for '(.+?)': Expected 'Digest", re.DOTALL),
}


def check_private_key(path: Path) -> None:
    """Checks that exports can be signed with a key.

    Args:
        path: PEM file of a private key on an elliptic curve; its password is in the environment (`PASSWORD_VARIABLE`).

    Raises:
        ConfigError: no such key, it needs another password, or a package is not installed.
    """
    _signer(path)


def sign_export(folder: Path, private_key: Path) -> None:
    """Writes `SIGNATURE_NAME` into an exported folder.

    Raises:
        ConfigError: see `check_private_key`.
    """
    signer = _signer(private_key).set_hashing_config(_hashing())
    signer.sign(folder, folder / SIGNATURE_NAME)


def check_signature(folder: Path, public_key: Path) -> None:
    """Checks that every file of an export is the one that was signed, and that none was added.

    Args:
        public_key: PEM file of the public key that belongs to the private key of the signature.

    Raises:
        ConfigError: no such key, or a package is not installed.
        ArtifactError: no signature, one of another key, or files that differ from those that were signed.
    """
    verifier = _verifier(public_key)
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: expected a signature ({SIGNATURE_NAME}), found none. `ichkit export NAME --sign KEY` signs."
        )
    try:
        verifier.set_hashing_config(_hashing()).verify(folder, path)
    # The package and what it stands on raise what they like; whatever it is, the model must not be used.
    except Exception as error:
        raise ArtifactError(f"{folder}: {_say(error, public_key)} Do not use it; ask for it again.") from error


def _say(error: Exception, public_key: Path) -> str:
    """What a failed check means."""
    text = str(error).replace("\\", "")
    if text.startswith(_MISMATCH):
        found = {name: ", ".join(pattern.findall(text)) for name, pattern in _DIFFERENCES.items()}
        said = "; ".join(f"{name}: {names}" for name, names in found.items() if names)
        return f"its files are not those that were signed ({said or 'see the folder'})."
    if "Key mismatch" in text:
        return f"expected a signature by the key of {public_key}, found one by another key."
    return f"its signature ({SIGNATURE_NAME}) is damaged or was changed ({type(error).__name__})."


def _signer(private_key: Path) -> Any:
    signing = _import("export --sign").signing
    password = os.environ.get(PASSWORD_VARIABLE)
    data, expected = _read_key(private_key, "export --sign"), "a private key on an elliptic curve (PEM)"
    if b"ENCRYPTED" in data and not password:
        raise ConfigError(f"export --sign: {private_key} has a password. Set it in {PASSWORD_VARIABLE}.")
    try:
        secret = None if password is None or b"ENCRYPTED" not in data else password.encode()
        return signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:
        hint = f" Is {PASSWORD_VARIABLE} right?" if b"ENCRYPTED" in data else ""
        raise ConfigError(
            f"export --sign: expected {expected} in {private_key}, found none that can be used.{hint} {_MAKE_KEYS}"
        ) from error


def _verifier(public_key: Path) -> Any:
    verifying = _import("--verify").verifying
    data = _read_key(public_key, "--verify")
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"--verify: expected a public key in {public_key}, found a private one: keep it secret.")
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise ConfigError(
            f"--verify: expected a public key on an elliptic curve (PEM) in {public_key}, found none. {_MAKE_KEYS}"
        ) from error


def _read_key(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{option}: expected a key file at {path}, it cannot be read ({error.strerror}). {_MAKE_KEYS}"
        ) from error


def _hashing() -> Any:
    """Every file below the folder but the signature; links are refused."""
    hashing = _import("--verify").hashing
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)


def _import(option: str) -> Any:
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ConfigError(f"{option}: {_NEEDS.format(package=error.name)}") from error
    return model_signing

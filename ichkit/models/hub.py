"""Checks for pretrained weights: in the local cache of the Hugging Face Hub, else whether the hub is reachable."""

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

PROBE_SECONDS = 4.0
"""The hub answers in well under a second; its own client retries for about 45 seconds."""
_SAFE_NAME = "model.safetensors"


def find_cached(repository: str) -> Path | None:
    """The cached file of weights, or None.

    Args:
        repository: name on the hub, optionally followed by "@revision".
    """
    name, _, revision = repository.partition("@")
    found = try_to_load_from_cache(name, _SAFE_NAME, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def why_unreachable() -> str:
    """Why the hub is unreachable, found within `PROBE_SECONDS`; empty if it answers.

    Uses the proxies of the environment, as the hub's client does.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers = [f"no answer within {PROBE_SECONDS:.0f} s"]
    # In a thread, because a DNS look-up has no timeout.
    address = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    probe = threading.Thread(target=_probe, args=(address, answers), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answers[-1]


def _probe(address: str, answers: list[str]) -> None:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            answers.append("")
    except urllib.error.HTTPError:  # it answers
        answers.append("")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        answers.append(str(reason).splitlines()[0] if str(reason) else type(error).__name__)

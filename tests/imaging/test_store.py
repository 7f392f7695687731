"""The bytes of a volume: what they hold, and that nothing but the volume decides them."""

import hashlib
import os
import resource
import subprocess
import sys

import blosc2
import numpy as np
import pytest

from ichkit.imaging.store import encode_volume

CODE = """
import hashlib, numpy as np
from ichkit.imaging.store import encode_volume
volume = np.random.default_rng(0).normal(30, 8, (24, 256, 256)).astype(np.int16)
print(hashlib.sha256(encode_volume(volume)).hexdigest())
"""


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).normal(30, 8, (24, 256, 256)).astype(np.int16)


def test_a_volume_comes_back_as_it_was(volume):
    np.testing.assert_array_equal(blosc2.ndarray_from_cframe(encode_volume(volume))[:], volume)


@pytest.mark.parametrize("threads", ["2", "8"])
def test_the_bytes_do_not_depend_on_how_many_threads_the_library_may_have(volume, threads):
    environment = os.environ | {"BLOSC_NTHREADS": threads}
    told = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True, env=environment)
    assert told.stdout.strip() == hashlib.sha256(encode_volume(volume)).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="counts of waits are those of Linux")
def test_encoding_waits_for_no_other_thread(volume):
    encode_volume(volume)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(5):
        encode_volume(volume)
    # With threads of the library's own there were about seven waits a slice.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before < 5 * len(volume)

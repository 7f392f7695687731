"""The bytes of a volume: what they hold, and that nothing but the volume decides them."""

import hashlib
import os
import resource
import subprocess
import sys

import blosc2
import numpy as np
import pytest
from support.simulated import TASK, add_external_set, make_work

from ichkit.core.errors import ArtifactError
from ichkit.core.tasks import Task
from ichkit.engine.blocks import VolumeReader
from ichkit.imaging.store import Prepared, encode_volume, write_volume

CODE = """
import hashlib, numpy as np
from ichkit.imaging.store import encode_volume
volume = np.random.default_rng(0).normal(30, 8, (24, 256, 256)).astype(np.int16)
print(hashlib.sha256(encode_volume(volume)).hexdigest())
"""


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).normal(30, 8, (24, 256, 256)).astype(np.int16)


@pytest.mark.parametrize("codec", ["compact", "fast"])
def test_a_volume_comes_back_as_it_was(volume, codec):
    stored = blosc2.ndarray_from_cframe(encode_volume(volume, codec))
    np.testing.assert_array_equal(stored[:], volume)
    assert stored.schunk.cparams.codec == {"compact": blosc2.Codec.ZSTD, "fast": blosc2.Codec.LZ4}[codec]


def test_the_bytes_of_the_compact_store_are_those_of_every_earlier_version():
    """Of integers made here, so that they depend on no generator. The digest was taken before there was another."""
    volume = ((np.arange(3 * 96 * 64) * 7919 % 2801) - 800).astype(np.int16).reshape(3, 96, 64)
    told = hashlib.sha256(encode_volume(volume)).hexdigest()
    assert told.startswith("8694bedb07fbc5fa")


@pytest.mark.parametrize("budget_bytes", [0, 1 << 30])
def test_a_volume_that_cannot_be_decoded_is_refused_by_its_path(volume, tmp_path, budget_bytes):
    relative, _ = write_volume(tmp_path, "ab" * 16, volume)
    path = tmp_path / relative
    written = path.read_bytes()
    refused = []
    for place in np.linspace(0, len(written) - 5000, 20).astype(int):
        path.write_bytes(written[:place] + b"\xff" * 5000 + written[place + 5000 :])
        try:
            VolumeReader(tmp_path, budget_bytes).read(relative, 0, len(volume))
        except ArtifactError as error:
            refused.append(str(error))
    assert refused  # elsewhere only pixels differ, which `ichkit verify` finds
    assert all(f"{relative}: no readable volume. `ichkit verify`" in message for message in refused)


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


def test_external_sets_stand_side_by_side_and_the_standard_one_always(tmp_path):
    work = make_work(tmp_path, runs=(), cq500_studies=2)
    add_external_set(work, "site")
    prepared = Prepared.open(work.prepared, TASK)
    assert prepared.external_sets() == ("cq500", "site")
    assert set(prepared.split("site").dataset) == {"site"}
    assert len(prepared.split("site")) == len(prepared.split("cq500")) > 0
    with pytest.raises(ArtifactError, match=r'no external set "hospital" is prepared, only cq500, site'):
        prepared.split("hospital")


def test_a_store_without_external_slices_still_has_the_standard_set(tmp_path):
    prepared = Prepared.open(make_work(tmp_path, runs=(), cq500_studies=0).prepared, TASK)
    assert prepared.external_sets() == ("cq500",)
    assert prepared.split("cq500").empty


def test_a_store_of_another_task_is_refused_by_both_names(tmp_path):
    work = make_work(tmp_path, runs=())
    side = Task("side", ("left", "right"), (0.5, 0.5), None, "Which side.", "this test")
    with pytest.raises(ArtifactError, match=r'expected a store of the task "side", found one of "hemorrhage"'):
        Prepared.open(work.prepared, side)


def test_a_volume_of_several_sequences_comes_back_slice_by_slice(tmp_path):
    volume = np.random.default_rng(5).integers(0, 3000, (5, 3, 70, 40)).astype(np.int16)
    path, _ = write_volume(tmp_path, "ab" * 16, volume)
    stored = blosc2.open(str(tmp_path / path), mode="r")
    assert stored.chunks == (1, 3, 70, 40)
    np.testing.assert_array_equal(stored[2:4], volume[2:4])
    read = VolumeReader(tmp_path, budget_bytes=0).read(path, 1, 3)
    assert read.shape == (2, 3, 70, 70)
    np.testing.assert_array_equal(read[..., 15:55], volume[1:3])

"""The same tasks on a Ray cluster; a local one of two workers, where Ray is installed."""

import importlib.util
import os
from pathlib import Path

import pytest
from support.commands import do, phantom_options
from support.jobs import square_or_die, where
from support.pixels import make_pixel_work
from support.training import config as training_config
from support.training import read_files

from ichkit.core.errors import ConfigError
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train import run as train
from ichkit.work.artifacts import read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed (extra ray)")


@pytest.fixture(scope="module")
def cluster():
    import ray

    # Functions of this module must be found on the other side; those of an installed package are.
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(prepare.__file__).parents[3])])
    environment = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_tasks_run_in_the_processes_of_the_cluster(cluster):
    results = dict(run_tasks(where, list(range(40)), backend="ray"))
    assert [results[i][0] for i in range(40)] == [i * i for i in range(40)]
    processes = {pid for _, pid in results.values()}
    assert os.getpid() not in processes
    assert len(processes) == 2


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_the_cluster_that_dies_is_named_and_the_others_are_done(cluster):
    results = dict(run_tasks(square_or_die, [1, 2, 3, 4], backend="ray"))
    assert isinstance(results.pop(2), WorkerDied)
    assert results == {0: 1, 1: 4, 3: 16}


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_prepare_on_a_cluster_gives_the_bytes_of_one_process(
    cluster, prepared_once, phantom_root, tiny_config, tmp_path
):
    work = WorkFolder(tmp_path)
    config = tiny_config.model_copy(update={"prepare": tiny_config.prepare.model_copy(update={"workers": 2})})
    do(prepare, config, work, phantom_options(phantom_root, backend="ray"))
    files = [read_manifest(item.prepared).files for item in (work, prepared_once)]
    assert files[0] == files[1]


def test_without_ray_it_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'ichkit\[ray\]'"):
        dict(run_tasks(abs, [-1], backend="ray"))


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_folds_trained_on_a_cluster_are_those_trained_here(cluster, tmp_path):
    here, there = make_pixel_work(tmp_path / "here"), make_pixel_work(tmp_path / "there")
    do(train, training_config("train.epochs=1"), here, run_name="run")
    do(train, training_config("train.epochs=1", "train.backend=ray"), there, run_name="run")
    assert take_inventory(there).finished_runs["run"] == [0, 1]
    for fold in (0, 1):
        ours, theirs = (read_files(work.fold("run", fold)) for work in (here, there))
        for name in ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet"):
            assert ours[name] == theirs[name], (fold, name)

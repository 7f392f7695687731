import time

import pytest
import torch
from torch import nn

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, DiskFullError
from ichkit.core.progress import StopFlag
from ichkit.core.train_config import TrainConfig
from ichkit.engine.checkpoint import load_checkpoint, save_checkpoint
from ichkit.engine.devices import make_fabric, torch_threads
from ichkit.engine.ema import AveragedWeights
from ichkit.engine.stopping import RelayedStop, relay_stop


def test_the_average_is_that_of_the_slow_definition_buffers_included():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = AveragedWeights(network, decay=0.5)
    slow = {name: value.clone().double() for name, value in network.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            network[0].weight.add_(torch.randn(3, 3))
            network(torch.randn(8, 3))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            slow[name] = decay * slow[name] + (1 - decay) * value.double() if value.is_floating_point() else value
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value.double(), slow[name].double(), rtol=1e-5, atol=1e-6)
    assert average.network[1].num_batches_tracked == 20
    assert not any(p.requires_grad for p in average.network.parameters())


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    state = {"a": torch.arange(3.0), "b": {"c": [1, 2.5, "x"], "d": None}}
    save_checkpoint(tmp_path / "last.ckpt", state)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded.pop("a"), state.pop("a"))
    assert loaded == state


def test_the_checkpoint_before_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"step": 1})

    def full(_state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFullError, match="is full"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=r"last\.ckpt: expected a checkpoint.*--fresh"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_an_unknown_accelerator_is_refused():
    with pytest.raises(ConfigError, match=r'train\.accelerator: "abacus" cannot be used here.*Choices: auto, cpu'):
        make_fabric(TrainConfig(accelerator="abacus"))


def test_precision_on_a_cpu_is_full():
    assert make_fabric(TrainConfig(accelerator="cpu")).strategy.precision.precision == "32-true"


@pytest.mark.parametrize(("said", "meant"), [("32", "32-true"), ("64", "64-true"), ("bf16-mixed", "bf16-mixed")])
def test_precision_is_taken_as_the_command_line_gives_it(said, meant):
    config = load_config("default", (f"train.precision={said}", "train.accelerator=cpu")).train
    assert make_fabric(config).strategy.precision.precision == meant


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1) as threads:
        assert threads == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_stop_asked_for_in_one_process_is_heard_in_another():
    asked = StopFlag()
    with relay_stop(asked) as path:
        heard = RelayedStop(StopFlag(), path)
        assert not heard
        asked.set()
        for _ in range(100):
            if heard:
                break

            time.sleep(0.05)
        assert heard
    assert not path.exists()


def test_a_worker_may_be_stopped_by_its_own_signal(tmp_path):
    own = StopFlag()
    relayed = RelayedStop(own, tmp_path / "stop")
    relayed.set()
    assert own
    assert relayed

"""Two processes that train one network, as `torchrun` starts them, but forked from a server that has imported."""

import multiprocessing
import os
import socket

from ichkit.cli.main import main
from support.training import TINY


def start(work, changes):
    """Both ranks of `ichkit train --fold 0`; what each prints goes to `told0` and `told1` beside the work folder."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["ichkit.stages.train.run", "ichkit.engine.loop", "timm", "lightning_fabric"])
    settings = [word for change in (*TINY, *changes) for word in ("--set", change)]
    words = ["train", "--work", str(work.root), "--run", "run", "--fold", "0", *settings]
    # Set by torchrun besides; it tells the library that processes are there already.
    place = {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(server.Process(target=_run, args=(words, dict(os.environ) | place | own, _told(work, rank))))
        processes[-1].start()
    return processes


def finish(work, processes, seconds):
    """The exit codes, and what each rank printed; a rank that goes on for longer is killed."""
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    return [process.exitcode for process in processes], [_told(work, rank).read_text() for rank in range(2)]


def _told(work, rank):
    return work.root.parent / f"told{rank}"


def _run(words, environment, path):
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)
    main(words, prog_name="ichkit")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

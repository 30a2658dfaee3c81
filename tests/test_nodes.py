"""Two nodes: two torchruns that know of each other by the network alone, here both on loopback."""

import os
import signal
import subprocess
import sys

import pytest

from core import run
from tests.loops import ROOT, TRAIN, bins_data, port
from tests.test_faults import wait_for, workers_of
from tests.test_loops import data, losses, same, weights  # noqa: F401 - data is a fixture

pytestmark = pytest.mark.full


def node(number: int, meeting: int, argv: list, ranks: int = 1, restarts: int = 0) -> subprocess.Popen:
    """docs/train.md's line for one of two nodes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={ranks}",
              f"--node_rank={number}", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{meeting}",
              "--rdzv_id=run7", "--local_addr=127.0.0.1", f"--max-restarts={restarts}"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen([*launch, "train.py", *map(str, argv)], cwd=ROOT, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def both(argv: list, ranks: int = 1, restarts: int = 0) -> str:
    """With restarts, node 1's rank is killed while it starts: node 0 starts its own again, and does not count that."""
    meeting = port()
    nodes = [node(n, meeting, argv, ranks, restarts) for n in (0, 1)]
    if restarts:
        assert wait_for(lambda: workers_of(nodes[0]) and workers_of(nodes[1]))
        os.kill(workers_of(nodes[1])[0], signal.SIGKILL)
    said = [n.communicate(timeout=300)[0] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], "\n".join(said)
    return "".join(said)


def test_two_nodes_equal_one_process_and_resume(data, tmp_path):  # noqa: F811
    toy = data(TRAIN)
    flags = [*TRAIN.flags(toy, tmp_path / "one"), *TRAIN.steps(10), *TRAIN.batch(8, 1, 1)]
    TRAIN.run(flags)
    out = tmp_path / "two"
    flags = [*TRAIN.flags(toy, out), *TRAIN.steps(10), *TRAIN.batch(4, 1, 2), "--save_major_ckpt_interval=5"]
    said = both(flags)
    assert "2 rank(s)" in said and said.count("done in") == 1, "one voice, one writer"
    assert losses(TRAIN, tmp_path / "one") == pytest.approx(losses(TRAIN, out), abs=TRAIN.equal)
    assert run.read_status(out)["state"] == "finished"

    end = weights(TRAIN, out)
    (out / "ckpt.pt").unlink()
    both(["--init_from=resume", f"--out_dir={out}", "--init_from_ckpt=ckpt_5.pt", "--device=cpu"], restarts=1)
    assert same(weights(TRAIN, out), end)


def test_two_nodes_of_two_ranks_draw_the_same_mixture(data, tmp_path):  # noqa: F811
    from core import tracker
    from tests.loops import MULTIDATASET

    toy = data(MULTIDATASET)
    picked = []
    for name, start in (("one", MULTIDATASET.run), ("four", lambda argv: both(argv, ranks=2))):
        start([*MULTIDATASET.flags(toy, tmp_path / name), *MULTIDATASET.steps(10), *MULTIDATASET.batch(8, 1, 1)])
        picked.append([r["data"] for r in tracker.read(tmp_path / name / "train.csv")])
    assert picked[0] == picked[1] and set(picked[0]) == {"toy", "wide"}
    assert losses(MULTIDATASET, tmp_path / "one") == pytest.approx(losses(MULTIDATASET, tmp_path / "four"), abs=1e-5)


def test_nodes_with_other_data(data, tmp_path):  # noqa: F811
    """Made on each node, from texts that differ: each rank would train on its own."""
    toy, meeting = data(TRAIN), port()
    other = tmp_path / "copy"
    bins_data(other, n=5000)
    flags = [*TRAIN.steps(4), *TRAIN.batch(4, 1, 2)]
    nodes = [node(n, meeting, [*TRAIN.flags(d, tmp_path / "out"), *flags]) for n, d in ((0, toy), (1, other))]
    for text in [n.communicate(timeout=300)[0] for n in nodes]:
        assert "is not the same on each node: tokens of train, of val, checksums [[" in text and "exitcode  : 2" in text, text


def test_nodes_that_do_not_share_the_run_folder(data, tmp_path):  # noqa: F811
    """It was a traceback of the second node's, or a resume that found nothing there."""
    toy, meeting = data(TRAIN), port()
    nodes = [node(n, meeting, [*TRAIN.flags(toy, tmp_path / str(n)), *TRAIN.steps(4)]) for n in (0, 1)]
    said = [n.communicate(timeout=300)[0] for n in nodes]
    for rank, text in enumerate(said):
        assert f"[rank {rank}] error: {tmp_path / '1'} on " in text, text
        assert "is not the folder that rank 0 writes (process " in text and "exitcode  : 2" in text
    assert not (tmp_path / "1").exists() and run.read_status(tmp_path / "0")["code"] == 2

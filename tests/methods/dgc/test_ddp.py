"""Two gloo processes under DDP give the numbers of the simulated cluster."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from repro.errors import UserError
from repro.methods.dgc import DataParallel, DeepGradientCompression, Picks
from repro.methods.dgc.cluster import ProcessCluster
from repro.methods.dgc.ddp_hook import BucketExchange

WORKER = Path(__file__).with_name("ddp_worker.py")
spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
assert spec is not None
assert spec.loader is not None
ddp_worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ddp_worker)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
    return torch.load(folder / "results", weights_only=True)


@pytest.mark.parametrize("case", ddp_worker.CASES)
def test_processes_agree_with_the_simulation(processes, case):
    kind, knobs = ddp_worker.CASES[case]
    model, method = ddp_worker.make_model(), kind(workers=2, **knobs)
    method.attach(model)
    ddp_worker.train(method, model, model, slice(None), range(ddp_worker.STEPS))

    result = processes[case]
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result["parameters"][name], parameter.detach(), **close)
    state = method.state_dict()
    for kind_of_memory, tensors in state.get("memory", {}).items():
        assert set(tensors) == set(result["state"]["memory"][kind_of_memory])
        for name, rows in tensors.items():
            assert rows.shape[0] == 2  # one row per worker, whichever back end wrote it
            mine = result["state"]["memory"][kind_of_memory][name]
            torch.testing.assert_close(mine, rows, **close)
    if case != "official":  # there, the number of entries differs between workers
        assert result["metrics"]["comm/bytes_per_step"] == method.metrics()["comm/bytes_per_step"]


def test_a_model_without_ddp_is_refused():
    method = DeepGradientCompression()
    model = torch.nn.Linear(2, 2)
    method.attach(model)
    with pytest.raises(UserError, match="DistributedDataParallel, not Linear"):
        method.register(model)


def test_processes_that_were_not_registered_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    method, model = DataParallel(), torch.nn.Linear(2, 2)
    method.attach(model)
    with pytest.raises(UserError, match="was not called"):
        method.backward(lambda x: model(x[0]).sum(), (torch.ones(4, 2),), torch.Tensor.backward)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_pad_messages_of_different_lengths(rank, monkeypatch):
    """The other one sends one entry and three; and rank 0 alone collects everybody's rows."""
    others = iter(map(torch.tensor, ([1, 3], [5, 5, 0, 1, 2], [7.0, 0, 8, 9, 6])))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)

    def gather(mine, rows, dst=0):
        for row in rows or ():
            row.copy_(mine)

    def all_gather(rows, mine):
        rows[rank].copy_(mine)
        rows[1 - rank].copy_(next(others))

    monkeypatch.setattr(dist, "gather", gather)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    cluster = ProcessCluster()
    picks = [Picks.of_rows([torch.tensor(row)]) for row in ([4, 1], [3])]
    messages = cluster.gather(picks, [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])], False)
    assert [(index[rank].tolist(), values[rank].tolist()) for index, values in messages] == [
        ([4, 1], [1, 2]),
        ([3, 3, 3], [3, 0, 0]),
    ]
    assert [values[1 - rank].tolist() for _, values in messages] == [[7, 0], [8, 9, 6]]
    collected = cluster.collect(torch.ones(1, 3))
    assert (None if collected is None else collected.tolist()) == (None if rank else 2 * [3 * [1]])


def test_gradients_of_channels_last_weights_come_back_to_their_places():
    """A bucket has them in the order of memory; the exchange, here plus 100, in that of indices."""
    weight = torch.empty(2, 3, 2, 2).to(memory_format=torch.channels_last)
    buffer = 2 * torch.arange(24.0).view(2, 3, 2, 2).permute(0, 2, 3, 1).flatten()
    seen = []

    def exchange(_tensors, rows):
        seen.append(rows[0].clone())
        rows[0].add_(100)

    method: Any = SimpleNamespace(
        cluster=SimpleNamespace(size=2), position={weight: 0}, needs_whole_gradient=False,
        exchange=exchange, end_step=lambda: None,
    )  # fmt: skip
    bucket: Any = SimpleNamespace(
        buffer=lambda: buffer, parameters=lambda: [weight], is_last=lambda: True,
        gradients=lambda: [buffer.view(2, 3, 2, 2)],
    )  # fmt: skip
    result = BucketExchange(method).receive(bucket).value()
    assert seen[0].flatten().tolist() == list(range(24))
    assert torch.equal(result.view(2, 2, 2, 3).permute(0, 3, 1, 2).flatten(), seen[0][0] + 100)

"""Two gloo processes under DDP give the numbers of the simulated cluster."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.errors import UserError
from repro.methods.dgc import DeepGradientCompression

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

"""Trains small models under DDP; run as a script, once per rank. Used by test_ddp.py.

The model has convolutions in channels-last memory (gradients that are not contiguous),
BatchNorm, biases, and several DDP buckets.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn

from repro.methods.dgc import DataParallel, DeepGradientCompression, TernGrad

STEPS, STEPS_PER_EPOCH, RESUME_AT = 9, 3, 5
COMPRESSION = {
    "ratio": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-2,
    "warmup_epochs": 2,
    "warmup_densities": [1.0, 0.3],
}
CASES = {
    "plain": (DeepGradientCompression, COMPRESSION),
    "clipped": (DeepGradientCompression, {**COMPRESSION, "clip_norm": 0.3}),
    "nesterov": (DeepGradientCompression, {**COMPRESSION, "nesterov": True, "masking": False}),
    "dropping": (DeepGradientCompression, {**COMPRESSION, "velocity_correction": False}),
    "random": (DeepGradientCompression, {**COMPRESSION, "selector": "random"}),
    "official": (DeepGradientCompression, {**COMPRESSION, "selector": "sampled_official"}),
    "fp16": (DeepGradientCompression, {**COMPRESSION, "encoding": "fp16_int32"}),
    "dense": (DataParallel, {}),
    "terngrad": (TernGrad, {}),
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(  # type: ignore[call-overload]
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 20),
        nn.Tanh(),
        nn.Linear(20, 3),
    ).to(torch.float64, memory_format=torch.channels_last)


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 8, 2, 4, 4, generator=generator, dtype=torch.float64)
    return list(zip(x, torch.randint(3, (STEPS, 8), generator=generator), strict=True))


def train(method, model, forward, mine, steps, optimizer_state=None):
    """Runs some steps on part `mine` of every batch; returns the optimizer."""
    optimizer = method.optimizer(
        model, lambda params, **kw: torch.optim.SGD(params, **{"lr": 0.1, "momentum": 0.9, **kw})
    )
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    data = batches()
    for step in steps:
        if step % STEPS_PER_EPOCH == 0:
            method.start_epoch(step // STEPS_PER_EPOCH)
        x, y = data[step]
        optimizer.zero_grad()
        method.backward(
            lambda batch: nn.functional.cross_entropy(forward(batch[0]), batch[1]),
            (x[mine], y[mine]),
            torch.Tensor.backward,
        )
        method.before_step(model)
        optimizer.step()
    return optimizer


def wrapped(method, model):
    method.attach(model)
    ddp_model = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
    method.register(ddp_model)
    return ddp_model


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    results = {}
    for name, (kind, knobs) in CASES.items():
        model, method = make_model(), kind(**knobs)
        forward = wrapped(method, model)
        optimizer = train(method, model, forward, mine, range(RESUME_AT))
        state = method.state_dict()  # a collective call: rank 0 gets everybody's memory
        if rank == 0:
            torch.save(state, f"{folder}/state")
        dist.barrier()

        method = kind(**knobs)  # resume as a new run would
        state = torch.load(f"{folder}/state", weights_only=True)
        if name == "clipped":  # loading may come before or after joining DDP
            forward = wrapped(method, model)
            method.load_state_dict(state)
        else:
            method.attach(model)
            method.load_state_dict(state)
            forward = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
            method.register(forward)
        train(method, model, forward, mine, range(RESUME_AT, STEPS), optimizer.state_dict())
        results[name] = {
            "parameters": {n: p.detach() for n, p in model.named_parameters()},
            "state": method.state_dict(),
            "metrics": method.metrics(),
        }
    if rank == 0:
        torch.save(results, f"{folder}/results")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

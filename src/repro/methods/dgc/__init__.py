"""Deep Gradient Compression and its neighbours, usable from a plain PyTorch loop.

Four simulated workers share each batch and send about 1 % of their gradients:

>>> import torch
>>> from repro.methods.dgc import DeepGradientCompression
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
... )
>>> x = torch.randn(256, 8)
>>> y = x.square().mean(dim=1, keepdim=True)
>>> def loss_of(batch):
...     return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
>>> before = loss_of((x, y)).item()
>>> method = DeepGradientCompression(ratio=0.01, momentum=0.9, workers=4, warmup_epochs=2)
>>> method.attach(model)
>>> optimizer = method.optimizer(model, lambda params, **kw: torch.optim.SGD(params, lr=0.05, **kw))
>>> for epoch in range(10):
...     method.start_epoch(epoch)
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         loss = method.backward(loss_of, batch, torch.Tensor.backward)
...         method.before_step(model)  # adds weight decay, if any
...         optimizer.step()
>>> loss_of((x, y)).item() < 0.5 * before
True
>>> round(method.metrics()["comm/ratio_by_count"])  # 576 weights, 6 + 1 sent
82

Under ``DistributedDataParallel`` call ``method.register(ddp_model)`` after `attach`: every process
is then one worker, and the loop above stays as it is.

The parts stand on their own: `TopKCompressor`, `ErrorFeedbackMemory`, `density_schedule`,
`CommLedger`, `NetworkModel`, `SimulatedCluster` and `ProcessCluster`; `DataParallel` is the
uncompressed baseline and the base class for other exchanges, as `TernGrad` shows.
"""

from repro.methods.dgc.cluster import Cluster, ProcessCluster, SimulatedCluster
from repro.methods.dgc.data_parallel import DataParallel
from repro.methods.dgc.encoding import Encoding, make_encoding
from repro.methods.dgc.ledger import CommLedger, NetworkModel
from repro.methods.dgc.memory import ErrorFeedbackMemory, MomentumBuffer
from repro.methods.dgc.method import DeepGradientCompression
from repro.methods.dgc.random_key import RandomKey
from repro.methods.dgc.schedule import density_schedule
from repro.methods.dgc.selection import (
    ExactSelector,
    OfficialSampledSelector,
    Picks,
    RandomSelector,
    SampledSelector,
    Selector,
    SparseTensor,
    TopKCompressor,
    entries_to_send,
    make_selector,
)
from repro.methods.dgc.terngrad import TernGrad

__all__ = [
    "Cluster",
    "CommLedger",
    "DataParallel",
    "DeepGradientCompression",
    "Encoding",
    "ErrorFeedbackMemory",
    "ExactSelector",
    "MomentumBuffer",
    "NetworkModel",
    "OfficialSampledSelector",
    "Picks",
    "ProcessCluster",
    "RandomKey",
    "RandomSelector",
    "SampledSelector",
    "Selector",
    "SimulatedCluster",
    "SparseTensor",
    "TernGrad",
    "TopKCompressor",
    "density_schedule",
    "entries_to_send",
    "make_encoding",
    "make_selector",
]

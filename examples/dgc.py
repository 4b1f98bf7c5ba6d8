"""Deep Gradient Compression: the same accuracy while 1 % of the gradient is sent.

Four simulated workers share each batch of digits. Run it: ``python examples/dgc.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from repro.methods.dgc import DeepGradientCompression

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)

for ratio in (1.0, 0.01):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )  # fmt: skip
    method = DeepGradientCompression(ratio=ratio, momentum=0.9, workers=4, warmup_epochs=2)
    method.attach(model)
    optimizer = method.optimizer(
        model, lambda parameters, **settings: torch.optim.SGD(parameters, lr=0.1, **settings)
    )

    def loss_of(batch: tuple[Tensor, ...], model: torch.nn.Module = model) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    for epoch in range(30):
        method.start_epoch(epoch)
        for batch in zip(x[:1400].split(64), y[:1400].split(64), strict=True):
            optimizer.zero_grad()
            method.backward(loss_of, batch, Tensor.backward)
            method.before_step(model)
            optimizer.step()
    right = (model(x[1400:]).argmax(1) == y[1400:]).float().mean()
    sent = 1 / method.metrics()["comm/ratio_by_count"]
    print(f"ratio={ratio}: {right:.1%} of the test digits are read right, {sent:.1%} sent")

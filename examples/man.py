"""Momentum Auxiliary Network: every layer is trained by a loss of its own.

No gradient crosses from one block to the next. Run it: ``python examples/man.py``.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from repro.methods.man import LocalLearning
from repro.models import MLP

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)

recipes: dict[str, dict[str, Any]] = {
    "end to end": {"modules": 1},
    "local": {"ema": False, "bias": False},
    "MAN": {},
}
for name, settings in recipes.items():
    torch.manual_seed(0)
    model = MLP(input_shape=[64], classes=10, hidden=[32, 32, 32])
    method = LocalLearning(input_shape=[64], classes=10, head="0c1f", momentum=0.99, **settings)
    method.attach(model)
    optimizer = method.optimizer(
        model, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    )

    def loss_of(batch: tuple[Tensor, ...], model: torch.nn.Module = model) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    for _ in range(30):
        for batch in zip(x[:1400].split(64), y[:1400].split(64), strict=True):
            optimizer.zero_grad()
            method.backward(loss_of, batch, torch.Tensor.backward)
            optimizer.step()
    right = (model(x[1400:]).argmax(1) == y[1400:]).float().mean()
    print(f"{name}: {right:.1%} of the test digits are read right")

"""LANTON in plain PyTorch: layers with noisier gradients than others take shorter steps.

A network learns to read digits while noise is added to the gradient of one of its equal layers.
LANTON sees which one, from consecutive gradients alone, and shortens that layer's steps. Run it:
``python examples/lanton.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from repro.methods.lanton import Lanton, layer_groups

STEPS = 120
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)

for name in ("the same rate for all", "LANTON"):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64) for _ in range(3)]
    model = torch.nn.Sequential()
    for layer in layers:
        model.extend([layer, torch.nn.ReLU()])
    model.append(torch.nn.Linear(64, 10))
    optimizer = Lanton(layer_groups(model), lr=0.2, noise="previous" if name == "LANTON" else "off")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(1400, (128,))
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        gradient = layers[1].weight.grad
        assert gradient is not None
        gradient += 0.03 * torch.randn(64, 64)
        optimizer.step()
        schedule.step()
    loss = cross_entropy(model(x[test]), y[test]).item()
    shares = ", ".join(f"{share:.2f}" for share in optimizer.rates["hidden"].tolist())
    print(f"{name}: test loss {loss:.3f}; the hidden layers' shares of the rate: {shares}")

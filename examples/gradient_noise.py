"""Annealed gradient noise: a network whose weights all start at zero, with noise and without.

Plain SGD never leaves such a start, because every hidden unit gets the gradient zero; noise on the
gradient breaks the tie. Run it: ``python examples/gradient_noise.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from repro.methods.gradient_noise import GradientNoise

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)

for eta in (0.0, 0.1):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    method = GradientNoise(eta=eta, schedule="poly" if eta else "none")
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(1000):
        batch = torch.randint(1400, (64,))
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        method.before_step(model)  # adds the noise
        optimizer.step()
    right = (model(x[test]).argmax(1) == y[test]).float().mean()
    print(f"eta={eta}: {right:.0%} of the test digits are read right")

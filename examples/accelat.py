"""AccelAT's rule: the learning rate falls whenever accuracy stops rising.

Here it drives the training of a small network on digits. Run it: ``python examples/accelat.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from repro.methods.accelat import AccuracySlopeLR

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
scheduler = AccuracySlopeLR(optimizer)

for epoch in range(30):
    for batch in torch.randperm(1400).split(64):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    rate = optimizer.param_groups[0]["lr"]
    scheduler.step(accuracy)  # what it watches: any number that rises while training works
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}, learning rate {rate:.5f}")

"""OTOv3: a small residual network that loses half of its channels while it is trained.

Channels that look redundant are driven to exact zero; what is left is cut out and computes the
same, without any fine-tuning. Run it: ``python examples/otov3.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from repro.methods.otov3 import SparseTraining
from repro.models.vision.even_resnet import EvenResNet

images, labels = load_digits(return_X_y=True)
x = torch.tensor((images - images.mean()) / images.std(), dtype=torch.float32).view(-1, 1, 8, 8)
y = torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
model = EvenResNet([1, 8, 8], 10, width=8, blocks=2)
method = SparseTraining(target=0.5, start=2, penalty=0.3, epsilon=0.95)
method.attach(model)
optimizer = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.1))
for epoch in range(8):
    method.start_epoch(epoch)
    order = torch.randperm(1400)
    for batch in zip(x[order].split(64), y[order].split(64), strict=True):
        optimizer.zero_grad()
        method.backward(lambda b: cross_entropy(model(b[0]), b[1]), batch, Tensor.backward)
        method.before_step(model)
        optimizer.step()
        method.after_step(model)
    print(f"epoch {epoch}: {method.removed():.0%} of the channels are zero")

model.eval()
smaller = method.extract()
for name, each in (("trained", model), ("extracted", smaller)):
    right = (each(x[test]).argmax(1) == y[test]).float().mean()
    size = sum(p.numel() for p in each.parameters())
    print(f"{name}: {size} parameters, {right:.1%} of the test digits are read right")
print(f"largest difference of their outputs: {(smaller(x) - model(x)).abs().max():.1e}")

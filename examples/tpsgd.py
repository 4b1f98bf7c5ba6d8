"""Target-projection SGD: each layer learns by itself to show a random picture of the label.

No gradient crosses from one layer to the next, so that what is kept for backward passes does not
grow with depth. Run it: ``python examples/tpsgd.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from repro.methods.tpsgd import Backprop, TargetProjection
from repro.models import MLP
from repro.toolbox.costs import SavedForBackward

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16 - 0.3, torch.tensor(labels)

methods = {
    "backpropagation": Backprop(hidden_lr=0.3),
    "target projection": TargetProjection("l2", hidden_lr=0.1),
    "random features": Backprop(hidden_lr=0.0),
}
for name, method in methods.items():
    torch.manual_seed(0)
    model = MLP(input_shape=[64], classes=10, hidden=[64] * 4, activation="tanh")
    method.attach(model)
    optimizer = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.3))

    def loss_of(batch: tuple[Tensor, ...], model: torch.nn.Module = model) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    for _ in range(300):
        batch = torch.randint(1400, (32,))
        optimizer.zero_grad()
        method.backward(loss_of, (x[batch], y[batch]), Tensor.backward)
        optimizer.step()
    with SavedForBackward([*model.parameters(), x]) as saved:
        method.backward(loss_of, (x[:32], y[:32]), Tensor.backward)
    right = (model(x[1400:]).argmax(1) == y[1400:]).float().mean()
    print(f"{name}: {right:.1%} of the test digits, {saved.peak / 1024:.0f} KB kept at most")

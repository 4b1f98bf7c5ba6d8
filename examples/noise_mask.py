"""Noise masks: a classifier is heated behind masks that a policy draws, then fine-tuned.

On few images. The factor that the method puts on the loss is half of the story, so a classifier
without masks gets the same one. Run it: ``python examples/noise_mask.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from repro.methods.noise_mask import InputNoise, MaskPolicy, NoiseMask, flat_loss_scale
from repro.models.vision.small_cnn import SmallCNN

torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
train, test = slice(0, 200), slice(200, None)


def accuracy(model: torch.nn.Module) -> float:
    """The share of test digits that are read right."""
    with torch.no_grad():
        found = model.eval()(x[test]).argmax(1)
    model.train()
    return float((found == y[test]).float().mean())


def sgd(parameters: object) -> torch.optim.SGD:
    """The optimizer of classifier and policy."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # type: ignore[arg-type]


for name in ("plain", "plain, loss scaled", "noise masks"):
    torch.manual_seed(0)
    model = SmallCNN([1, 8, 8], 10, widths=[8, 16, 16], pool=1)
    policy = MaskPolicy(SmallCNN([1, 8, 8], 1, widths=[8], strides=[2], pool=1), grid=4)
    method = {
        "plain": InputNoise("none"),
        "plain, loss scaled": InputNoise("none", loss_scale=flat_loss_scale(policy.grid)),
        "noise masks": NoiseMask(policy, kernel=3, sigma=1.0),
    }[name]
    method.attach(model)
    optimizer = method.optimizer(model, sgd)
    for stage, epochs in (("heated", 15), ("fine-tuned", 8)):
        for _ in range(epochs):
            for batch in zip(x[train].split(40), y[train].split(40), strict=True):
                optimizer.zero_grad()
                loss_of = lambda b: cross_entropy(model(b[0]), b[1])  # noqa: E731
                if stage == "heated":
                    method.backward(loss_of, batch, torch.Tensor.backward)
                    method.before_step(model)  # moves the policy
                else:
                    loss_of(batch).backward()
                optimizer.step()
        print(f"{name}, {stage}: {accuracy(model):.1%}")

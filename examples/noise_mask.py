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


def sgd(parameters: object) -> torch.optim.SGD:
    """The optimizer of classifier and policy."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # type: ignore[arg-type]


def train(name: str, method: InputNoise | NoiseMask) -> None:
    """Both stages; prints the share of test digits that are read right after each."""
    torch.manual_seed(0)
    model = SmallCNN([1, 8, 8], 10, widths=[8, 16, 16], pool=1)

    def loss_of(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    method.attach(model)
    optimizer = method.optimizer(model, sgd)
    for stage, epochs in (("heated", 12), ("fine-tuned", 8)):
        model.train()
        for _ in range(epochs):
            for batch in zip(x[:200].split(50), y[:200].split(50), strict=True):
                optimizer.zero_grad()
                if stage == "heated":
                    method.backward(loss_of, batch, torch.Tensor.backward)
                    method.before_step(model)  # moves the policy
                else:
                    loss_of(batch).backward()
                optimizer.step()
        with torch.no_grad():
            right = (model.eval()(x[200:]).argmax(1) == y[200:]).float().mean()
        print(f"{name}, {stage}: {right:.1%} of the test digits are read right")


torch.manual_seed(0)
policy = MaskPolicy(SmallCNN([1, 8, 8], 1, widths=[8], strides=[2], pool=1), grid=4)
train("plain", InputNoise("none"))
train("plain, loss scaled", InputNoise("none", loss_scale=flat_loss_scale(policy.grid)))
train("noise masks", NoiseMask(policy, kernel=3, sigma=1.0))

"""Contextual fusion: a second network that knows the scene, where the one of objects is fooled.

Two tiny networks learn one task each: which digit, and which scene. Then a linear classifier on
both is shown pictures that were perturbed to fool the classifier on the first.
Run it: ``python examples/contextual_fusion.py``.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from repro.data.images.composites import digits_in_scenes
from repro.methods.contextual_fusion import FeatureFusion, HeadTraining, Stream
from repro.models import SmallCNN
from repro.toolbox.attacks import FGSM
from repro.toolbox.heads import remove_head

torch.manual_seed(0)
data = digits_in_scenes(
    "digits", task="classification", train_size=600, test_size=300, source_size=1500
)
splits = {name: (x.float() / 255, *labels) for name, (x, *labels) in data.splits.items()}


def stream(labels: Tensor, classes: int, epochs: int) -> Stream:
    """A network that is trained on one task, and frozen."""
    x = 4 * (splits["source"][0] - 0.5)
    network = SmallCNN([3, 32, 32], classes, widths=[16, 32, 64], strides=[2, 2, 2], pool=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(network(x[batch]), labels[batch]).backward()
            optimizer.step()
    width = remove_head(network)
    return Stream(network, width, mean=[0.5], std=[0.25])


_, digits, scenes = splits["source"]
fg, bg = stream(digits, 10, epochs=6), stream(scenes, 12, epochs=3)
models: dict[str, nn.Module] = {}
for name, streams in {"foreground": {"fg": fg}, "fused": {"fg": fg, "bg": bg}}.items():
    model = FeatureFusion(streams, classes=10)
    x, y = splits["train"]
    z = model.features(x)  # once
    model.standardise(z)
    training = HeadTraining(model, z, y, penalties=dict.fromkeys(streams, 0.01))
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
    for epoch in range(20):
        training.epoch(optimizer, epoch)
    models[name] = model.eval()

x, y = splits["test"]
for budget in (0, 2, 4):
    attacked = FGSM(budget / 255)(models["foreground"], x, y)
    right = [
        f"{name} {(m(attacked).argmax(1) == y).float().mean():.0%}" for name, m in models.items()
    ]
    print(f"FGSM of {budget}/255 against the foreground: {', '.join(right)} right")

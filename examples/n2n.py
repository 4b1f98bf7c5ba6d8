"""N2N learning: a policy removes layers of a teacher, rewarded for small and accurate students.

Each student is trained briefly, with fresh weights, to imitate the teacher. Run it:
``python examples/n2n.py``.
"""

from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from repro.methods.n2n import (
    Judge,
    Recipe,
    Reinforce,
    Removal,
    RemovalPolicy,
    accuracies,
    read,
    train,
)
from repro.models import MLP

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)


def epochs(epoch: int) -> Iterable[tuple[Tensor, ...]]:
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(epoch))
    return zip(x[order].split(125), y[order].split(125), strict=True)


def held_out() -> Iterable[tuple[Tensor, ...]]:
    return [(x[1000:1400], y[1000:1400])]


torch.manual_seed(0)
model = MLP([64], 10, hidden=[96] * 4, batch_norm=True)
train([model], epochs, Recipe(epochs=10, lr=0.005, loss="labels"))
(accuracy,) = accuracies([model], held_out())

teacher = read(model)
judge = Judge(model, accuracy, [64], epochs, held_out, Recipe(epochs=2, lr=0.01))
search = Reinforce(RemovalPolicy(Removal(keep=[])), lr=0.005, entropy=0.03)
found = []
for update in range(24):
    actions = search.propose(teacher, 5, torch.Generator().manual_seed(update))
    rollouts = judge.rate([search.edit.apply(teacher, each) for each in actions])
    rewards = torch.tensor([each.reward for each in rollouts])
    measured = search.learn(teacher, actions, rewards)
    found += rollouts
    if update % 6 == 5:
        mean = torch.tensor([each.reward for each in found[-30:]]).mean()
        print(f"update {update + 1}: mean reward {mean:.3f}, entropy {measured['entropy']:.2f} nat")

best, size = max(found, key=lambda each: each.reward), judge.size(teacher) or 0
print(f"teacher: {size} parameters, {accuracy:.1%} of the held-out digits")
print(f"student: {best.parameters} parameters, {best.accuracy:.1%} after two epochs of imitation")
print(f"{len(judge.known)} architectures were trained for {len(found)} proposals")

"""What students cost: side by side on one pass over the data against one by one, and the memo."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from timing import faster
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.n2n import Judge, Layer, Recipe, fresh, read, train
from repro.methods.n2n.edits import Removal, Shrinkage
from repro.methods.n2n.policies import RemovalPolicy, ShrinkagePolicy
from repro.methods.n2n.search import Reinforce
from repro.models import MLP
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.costs import PeakMemory

torch.manual_seed(0)
MODEL = MLP([64], 10, [128] * 5, batch_norm=True)
X, Y = torch.randn(1000, 64), torch.arange(1000) % 10
# Five students with fewer and fewer hidden layers.
STUDENTS = [(*read(MODEL)[: 1 + 3 * depth], Layer("linear", 10)) for depth in range(1, 6)]
RECIPE = Recipe(epochs=5, lr=0.005)


def epochs(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(X.split(125), Y.split(125), strict=True)


def students() -> list[nn.Module]:
    return [fresh(each, [64], seed=0) for each in STUDENTS]


def side_by_side() -> None:
    train(students(), epochs, RECIPE, MODEL)


def one_by_one() -> None:
    """The ordinary loop: a teacher's pass, an optimizer and a pass over the data for each."""
    for student in students():
        optimizer = torch.optim.Adam(student.parameters(), RECIPE.lr, weight_decay=5e-4)
        student.train()
        for epoch in range(RECIPE.epochs):
            for x, y in epochs(epoch):
                with torch.no_grad():
                    z = MODEL.eval()(x)
                logits = student(x)
                distance = (logits - z).square().sum(1).mean()
                optimizer.zero_grad()
                (F.cross_entropy(logits, y) + distance).backward()
                optimizer.step()


def test_five_perceptrons_side_by_side() -> None:
    faster("five students of digits, against one by one", side_by_side, one_by_one, 1.3)


def test_five_residual_students_side_by_side() -> None:
    """What they share is the teacher's pass."""
    teacher = ResNetImageNet([3, 16, 16], 10, depth=18, small_images=True)
    student = (Layer("flatten"), Layer("linear", 32), Layer("relu"), Layer("linear", 10))
    x, y = torch.randn(32, 3, 16, 16), torch.arange(32) % 10

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        yield x, y

    def trained(count: int) -> None:
        some = [fresh(student, [3, 16, 16], seed) for seed in range(count)]
        train(some, batches, Recipe(epochs=1), teacher)

    def one_after_another() -> None:
        for _ in range(5):
            trained(1)

    faster("five students of ResNet-18", partial(trained, 5), one_after_another, 3)


def residual_students(teacher: nn.Module, count: int) -> list[nn.Module]:
    """A policy's first proposals for ResNet-18 at 32 x 32, those without every second layer."""
    policy = RemovalPolicy(Removal(), keep_rate=0.5)
    tables = policy.sample(read(teacher), count, torch.Generator().manual_seed(0))
    students = [Removal().apply(read(teacher), each) for each in tables]
    return [fresh(each, [3, 32, 32], seed) for seed, each in enumerate(students)]


def test_five_halves_of_resnet18() -> None:
    """As released: one pass over the data and through the teacher for all. Time, and memory."""
    teacher = ResNetImageNet([3, 32, 32], 10, depth=18, small_images=True)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 10

    def batches(_epoch: int) -> Iterator[tuple[Tensor, ...]]:
        yield x, y

    def trained(students: list[nn.Module]) -> None:
        train(students, batches, Recipe(epochs=1), teacher)

    students = residual_students(teacher, 5)

    def one_after_another() -> None:
        for each in students:
            trained([each])

    def peak(of: list[nn.Module]) -> float:
        there = [*teacher.parameters(), *(p for each in of for p in each.parameters())]
        with PeakMemory(x.device, there) as memory:
            trained(of)
        return memory.peak / 2**20

    sizes = [sum(p.numel() for p in each.parameters()) * 4 / 2**20 for each in students]
    together, alone = peak(students), max(peak([each]) for each in students)
    print(
        f"\npeak of five students, {sum(sizes):.0f} MB of weights: {together:.0f} MB; of one at a "
        f"time: {alone:.0f} MB"
    )
    # Weights, gradients and two averages of Adam of all students, beside what one alone takes.
    assert together < alone + 4 * 1.05 * sum(sizes)
    name = "five halves of ResNet-18, against one by one"
    faster(name, partial(trained, students), one_after_another, 1.2, repeats=2)


def test_what_was_trained_is_not_trained_again() -> None:
    known: dict[str, float] = {}
    court = partial(Judge, MODEL, 0.9, [64], epochs, lambda: [(X, Y)], RECIPE)
    court(known=known).rate(STUDENTS)
    again, anew = (partial(court, known=known), court)
    faster("known students", lambda: again().rate(STUDENTS), lambda: anew().rate(STUDENTS), 5)


@pytest.mark.parametrize(
    ("policy", "least"),
    [(RemovalPolicy(Removal(keep=[])), 5), (ShrinkagePolicy(Shrinkage(keep=[])), 1)],
)
def test_an_update_of_a_policy_beside_its_students(policy: RemovalPolicy, least: float) -> None:
    search, teacher = Reinforce(policy), read(MODEL)

    def update() -> None:
        actions = search.propose(teacher, 5, torch.Generator())
        search.learn(teacher, actions, torch.rand(5))

    faster(f"an update of {type(policy).__name__}", update, side_by_side, least)

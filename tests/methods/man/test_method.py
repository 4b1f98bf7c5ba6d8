"""Local learning against autograd on one whole graph, and against its limits."""

import copy
import doctest
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repro.methods.man
from repro.errors import UserError
from repro.methods.man import LocalLearning
from repro.models import MLP, LSTMLanguageModel, ResNetCIFAR, ResNetImageNet
from repro.toolbox.costs import PeakMemory
from repro.toolbox.method import Method

SHAPE, CLASSES = (3, 8, 8), 4
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def network(depth=14, width=4):
    return ResNetCIFAR(SHAPE, CLASSES, depth=depth, width=width)


def batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, *SHAPE, generator=generator),
        torch.randint(CLASSES, (size,), generator=generator),
    )


def attached(model, **knobs):
    defaults = {"input_shape": SHAPE, "classes": CLASSES, "head": "1c1f"}
    method = LocalLearning(**{**defaults, **knobs})
    method.attach(model)
    return method


def run_step(model, method, optimizer, data):
    def loss_of(part):
        return F.cross_entropy(model(part[0]), part[1])

    optimizer.zero_grad()
    loss = method.backward(loss_of, data, Tensor.backward)
    optimizer.step()
    method.after_step(model)
    return loss


def whole_losses(model, method, data):
    """The sum of all blocks' losses on one graph, written out from the model's own layers."""
    x, target = data
    units = [*model.layer1, *model.layer2, *model.layer3]
    x = model.relu(model.bn1(model.conv1(x)))
    total = torch.zeros(())
    for number, unit in enumerate(units):
        x = unit(x)
        if number < len(units) - 1:
            local = method.auxiliary[number]
            y = local.bridge.bias(x) + local.bridge.ema.module(x)
            total = total + F.cross_entropy(local.criterion.head(y), target)
            x = x.detach()
    return total + F.cross_entropy(model.fc(x.mean(dim=(2, 3))), target)


def test_doctest():
    results = doctest.testmod(repro.methods.man)
    assert results.attempted > 0
    assert results.failed == 0


def test_blockwise_backward_is_the_gradient_of_the_sum():
    torch.manual_seed(0)
    model = network()
    method = attached(model)
    method.backward(None, batch(), Tensor.backward)
    parameters = [*model.parameters(), *method.trained()]
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    # The copies moved after the backward pass: take the gradient where they stood before.
    torch.manual_seed(0)
    before = network()
    method = attached(before)
    parameters = [*before.parameters(), *method.trained()]
    expected = torch.autograd.grad(whole_losses(before, method, batch()), parameters)
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["dgl", "infopro", "predsim"])
def test_each_loss_reaches_its_own_block_alone(loss):
    model = network()
    method = attached(model, loss=loss)
    x, target = batch()
    image = x.sigmoid()
    for number, block in enumerate(method.blocks[:-1]):
        model.zero_grad()
        method.auxiliary.zero_grad()
        x = block(x)
        method.auxiliary[number](x, image, target).backward()
        x = x.detach()
        touched = {p for p in model.parameters() if p.grad is not None}
        assert touched == set(block.parameters())  # so the real next unit has none
        bridge = method.auxiliary[number].bridge
        assert any(p.grad.any() for p in bridge.bias.parameters())
        assert all(p.grad is None for p in bridge.ema.parameters())


def test_the_momentum_copy_steers_its_block():
    gradients = []
    for factor in (1.0, -1.0):  # batch norm would undo a positive factor
        torch.manual_seed(0)
        model = network()
        method = attached(model)
        with torch.no_grad():
            method.auxiliary[0].bridge.ema.module.conv1.weight.mul_(factor)
        method.backward(None, batch(), Tensor.backward)
        gradients.append(model.layer1[0].conv1.weight.grad)
    assert not torch.allclose(*gradients)


def test_one_block_is_ordinary_training_bit_for_bit():
    finals = []
    for build in (Method, partial(LocalLearning, SHAPE, CLASSES, modules=1)):
        torch.manual_seed(0)
        model, method = network(), build()
        method.attach(model)
        optimizer = method.optimizer(model, SGD)
        losses = [run_step(model, method, optimizer, batch(seed=i)) for i in range(3)]
        finals.append([*losses, *model.state_dict().values()])
    assert all(map(torch.equal, *finals))


def test_copies_follow_the_first_unit_of_the_next_block_before_the_step():
    model = network()
    method = attached(model, modules=3, momentum=0.0)  # blocks of units 0 | 1 2 | 3 4 5, say
    optimizer = method.optimizer(model, SGD)
    units = [*model.layer1, *model.layer2, *model.layer3]
    starts = [len(method.blocks[0]) - 1, len(method.blocks[0]) - 1 + len(method.blocks[1])]
    before = [[p.clone() for p in units[start].parameters()] for start in starts]
    run_step(model, method, optimizer, batch())
    for local, start, old in zip(method.auxiliary, starts, before, strict=True):
        copied = list(local.bridge.ema.module.parameters())
        assert all(map(torch.equal, copied, old))
        assert not all(map(torch.equal, copied, units[start].parameters()))


def test_the_optimizer_never_touches_momentum_copies():
    model = network()
    method = attached(model, momentum=1.0)  # weight decay is on in SGD above
    optimizer = method.optimizer(model, SGD)
    copies = [p for local in method.auxiliary for p in local.bridge.ema.parameters()]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert not held & set(copies)
    assert held == set(model.parameters()) | set(method.trained())
    before = [p.clone() for p in copies]
    run_step(model, method, optimizer, batch())
    assert all(map(torch.equal, copies, before))


def test_a_bridge_that_changes_nothing_is_plain_local_learning():
    losses = []
    for bridged in (False, True):
        torch.manual_seed(0)
        model = network(depth=8)
        method = attached(model, ema=False, bias=False, head="0c1f")
        if bridged:
            for local in method.auxiliary:
                local.bridge.ema = nn.Identity()
                local.bridge.bias = lambda x: torch.zeros_like(x)
        method.backward(None, batch(), Tensor.backward)
        losses.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *losses))


@pytest.mark.parametrize("bridge", [{}, {"ema": False}, {"bias": False}])
def test_heads_take_the_shape_of_the_next_unit(bridge):
    model = network()
    method = attached(model, **bridge)
    x, _ = batch()
    shapes = []
    for block, local in zip(method.blocks, method.auxiliary, strict=False):
        x = block(x)
        shapes.append(tuple(local.bridge(x).shape[1:]))
    assert shapes == [(4, 8, 8), (8, 4, 4), (8, 4, 4), (16, 2, 2), (16, 2, 2)]


def test_the_network_stays_the_plain_network():
    torch.manual_seed(0)
    model = network()
    plain = network()
    method = attached(model)
    run_step(model, method, method.optimizer(model, SGD), batch())
    plain.load_state_dict(model.state_dict())  # strict: no key more, no key less
    x, _ = batch()
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_infopro_paints_less_and_classifies_more_along_the_blocks():
    method = attached(network(), loss="infopro")
    criteria = [local.criterion for local in method.auxiliary]
    assert [c.weight_x for c in criteria] == pytest.approx([5, 4.1, 3.2, 2.3, 1.4])
    assert [c.weight_y for c in criteria] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("cut", [{"modules": 3}, {"borders": [1, 4]}])
def test_infopro_trains_every_block_of_any_cut(cut):
    model = network()
    method = attached(model, loss="infopro", **cut)
    method.backward(None, batch(), Tensor.backward)
    for block in method.blocks:
        assert max(p.grad.abs().max() for p in block.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("cut", [{"modules": 3}, {"borders": [1, 4]}])
def test_a_block_without_a_weight_is_refused(cut):
    with pytest.raises(UserError, match="both 0 at block 2 of 3"):
        attached(network(), loss="infopro", weight_x=[5.0, 0.0], weight_y=[0.5, 0.0], **cut)


def test_infopro_paints_denormalised_pixels(monkeypatch):
    model = network(depth=8)
    seen = []
    monkeypatch.setattr(
        "repro.methods.man.heads.F.binary_cross_entropy_with_logits",
        lambda logits, image: seen.append(image) or logits.mean(),  # type: ignore[func-returns-value]
    )
    method = attached(
        model, loss="infopro", normalise={"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    )
    pixels = torch.rand(8, *SHAPE)
    method.backward(None, ((pixels - 0.5) / 0.2, batch()[1]), Tensor.backward)
    torch.testing.assert_close(seen[0], pixels)


def test_clipping_counts_auxiliary_gradients():
    model = network()
    method = attached(model)
    method.backward(None, batch(), Tensor.backward)
    method.clip(model.parameters(), 0.1)
    gradients = [p.grad.flatten() for p in [*model.parameters(), *method.trained()]]
    assert torch.cat(gradients).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_saved_state_continues_bit_for_bit():
    torch.manual_seed(0)
    model = network()
    method = attached(model)
    optimizer = method.optimizer(model, SGD)
    run_step(model, method, optimizer, batch())
    saved = copy.deepcopy(([x.state_dict() for x in (model, optimizer)], method.state_dict()))
    run_step(model, method, optimizer, batch(seed=1))

    other = network()
    again = attached(other)
    resumed = again.optimizer(other, SGD)
    other.load_state_dict(saved[0][0])
    resumed.load_state_dict(saved[0][1])
    again.load_state_dict(saved[1])
    run_step(other, again, resumed, batch(seed=1))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    ours, theirs = method.state_dict()["auxiliary"], again.state_dict()["auxiliary"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_other_models():
    model: Any = MLP([3, 8, 8], CLASSES, hidden=[16, 16, 16])
    attached(model, head="0c1f").backward(None, batch(), Tensor.backward)
    assert all(p.grad is not None for p in model.parameters())
    model = ResNetImageNet(SHAPE, CLASSES, depth=18, small_images=True)
    attached(model, modules=2).backward(None, batch(), Tensor.backward)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "model",
    [network(), MLP(SHAPE, CLASSES, hidden=[5, 6]), ResNetImageNet(SHAPE, CLASSES, depth=18)],
)
def test_a_chain_is_the_forward_pass(model):
    model.eval()
    x, _ = batch()
    chain = model.chain()
    assert torch.equal(nn.Sequential(chain.stem, *chain.units, chain.head)(x), model(x))
    assert len(chain.stages) == len(chain.units)


@pytest.mark.parametrize(
    ("model", "knobs", "message"),
    [
        (network(), {"classes": None}, "a data set with classes"),
        (LSTMLanguageModel(10), {}, "cannot cut LSTMLanguageModel"),
        (MLP(SHAPE, CLASSES, hidden=[]), {}, "has none"),
        (MLP(SHAPE, CLASSES), {}, "features are vectors"),
        (MLP(SHAPE, CLASSES), {"head": "0c1f", "loss": "infopro"}, "choose dgl or predsim"),
        (network(), {"momentum": -0.1}, "momentum lies in"),
        (network(), {"modules": 8}, "method.modules lies between 1 and 7"),
        (network(), {"loss": "predism"}, "Did you mean 'predsim'"),
        (network(), {"decoder": "mnist"}, "cifar or imagenet"),
        (network(), {"weight_x": [5.0]}, "first block, last block"),
    ],
)
def test_what_cannot_be_trained(model, knobs, message):
    with pytest.raises(UserError, match=message) as caught:
        attached(model, **knobs)
    assert len(str(caught.value).splitlines()) == 1


def test_targets_must_be_labels():
    method = attached(network())
    with pytest.raises(UserError, match="one class label per example"):
        method.backward(None, (batch()[0], torch.randn(8, 1)), Tensor.backward)


def test_several_devices_are_refused():
    with pytest.raises(UserError, match="one device a run"):
        attached(network()).register(nn.Identity())


# ------------------------------------------------------------------------------------ memory


class SavedTensors:
    """Knows which block's saved activations are alive, by weak references to what autograd kept."""

    def __init__(self, method):
        self.kept: list[list[Any]] = [[] for _ in method.blocks]
        self.current = 0
        for number, block in enumerate(method.blocks):
            block.register_forward_pre_hook(partial(self.entered, number))
        self.alive_on_entry = []

    def entered(self, number, *_):
        self.current = number
        self.alive_on_entry.append(sum(self.alive(earlier) for earlier in range(number)))

    def alive(self, number):
        return sum(reference() is not None for reference in self.kept[number])

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(self, tensor):
        box = self.Box(tensor)
        self.kept[self.current].append(weakref.ref(box))
        return box

    @staticmethod
    def unpack(box):
        return box.tensor


@pytest.mark.parametrize(
    "knobs", [{}, {"ema": False, "bias": False}, {"loss": "infopro"}, {"loss": "predsim"}]
)
def test_a_block_begins_when_all_earlier_activations_are_freed(knobs):
    method = attached(network(), **knobs)
    spy = SavedTensors(method)
    with torch.autograd.graph.saved_tensors_hooks(spy.pack, spy.unpack):
        method.backward(None, batch(), Tensor.backward)
    assert len(spy.alive_on_entry) == len(method.blocks)
    assert all(spy.kept)  # every block did save something
    assert spy.alive_on_entry == [0] * len(method.blocks)


def test_the_spy_sees_a_graph_that_is_kept():
    """A mutant that postpones the backward passes keeps every block's activations."""
    method = attached(network())
    spy = SavedTensors(method)
    postponed: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(spy.pack, spy.unpack):
        method.backward(None, batch(), postponed.append)
    assert all(count > 0 for count in spy.alive_on_entry[1:])


def peak(depth, **knobs):
    torch.manual_seed(0)
    model = MLP([64], CLASSES, hidden=[64] * depth)
    method = LocalLearning([64], CLASSES, head="0c1f", **knobs)
    method.attach(model)
    data = torch.randn(512, 64), torch.randint(CLASSES, (512,))
    with PeakMemory(torch.device("cpu")) as memory:
        method.backward(None, data, Tensor.backward)  # type: ignore[arg-type]
    trained: list[Any] = [*model.parameters(), *method.trained()]
    gradients = sum(p.grad.nbytes for p in trained)
    return memory.peak - gradients  # what is left is activations, give or take one layer


def test_measured_activations_do_not_grow_with_depth():
    layer = 512 * 64 * 4
    local = [peak(depth) for depth in (4, 16)]
    whole = [peak(depth, modules=1) for depth in (4, 16)]
    assert abs(local[1] - local[0]) < layer
    assert whole[1] - whole[0] > 10 * layer  # of twelve more layers

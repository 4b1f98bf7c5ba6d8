"""The whole method against a slow second implementation, and the laws it has to obey."""

import doctest
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

import repro.methods.dgc
from repro.errors import UserError
from repro.methods.dgc import DataParallel, DeepGradientCompression, TernGrad, entries_to_send
from repro.toolbox.method import Method

LR = 0.1
EPOCHS, STEPS_PER_EPOCH = 3, 4


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def batches(size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    steps = EPOCHS * STEPS_PER_EPOCH
    x = torch.randn(steps, size, 6, generator=generator, dtype=torch.float64)
    return list(zip(x, torch.randint(3, (steps, size), generator=generator), strict=True))


def loss_on(model):
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(params, **settings):
    return torch.optim.SGD(
        params, **{"lr": LR, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, **settings}
    )


def train(method, data=None, steps=None, model=None, optimizer=None, first_epoch=True):
    """The loop of `Method`'s docstring; returns the model and its optimizer."""
    model = model or make_model()
    if first_epoch:
        method.attach(model)
    optimizer = optimizer or method.optimizer(model, sgd)
    data = data or batches()
    for step in steps if steps is not None else range(len(data)):
        if step % STEPS_PER_EPOCH == 0:
            method.start_epoch(step // STEPS_PER_EPOCH)
        optimizer.zero_grad()
        method.backward(loss_on(model), data[step], torch.Tensor.backward)
        method.clip(model.parameters(), None)
        method.before_step(model)
        optimizer.step()
        method.after_step(model)
    return model, optimizer


def assert_same(model, other, atol=1e-12):
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


def by_hand(
    workers,
    densities,
    momentum,
    nesterov=False,
    weight_decay=0.0,
    masking=True,
    velocity_correction=True,
    clip_norm=None,
):
    """Algorithm 4 of the paper, written down a second time: worker by worker, entry by entry."""
    model = make_model()
    weights = list(model.parameters())
    m = momentum if velocity_correction else 0.0
    U = [[torch.zeros(w.numel(), dtype=torch.float64) for w in weights] for _ in range(workers)]
    V = [[torch.zeros(w.numel(), dtype=torch.float64) for w in weights] for _ in range(workers)]
    shared, decay, receiver = ([torch.zeros_like(w) for w in weights] for _ in range(3))
    was_dense = True

    def with_momentum(buffer, d, m):
        new = m * buffer + d
        return new, (d + m * new if nesterov else new)

    for step, (x, y) in enumerate(batches()):
        density = densities[min(step // STEPS_PER_EPOCH, len(densities) - 1)]
        grads = []
        for part_x, part_y in zip(x.chunk(workers), y.chunk(workers), strict=True):
            loss = loss_on(model)((part_x, part_y))
            g = [gradient / workers for gradient in torch.autograd.grad(loss, weights)]
            norm = sum(float(gradient.square().sum()) for gradient in g) ** 0.5
            if clip_norm is not None and norm > clip_norm / workers**0.5:
                g = [gradient * clip_norm / workers**0.5 / norm for gradient in g]
            grads.append(g)
        updates = []
        for j, w in enumerate(weights):
            if w.dim() < 2 or density == 1:
                total = sum(g[j] for g in grads)
                shared[j], update = with_momentum(shared[j], total, m)
                updates.append(update)
                continue
            if was_dense:
                for k in range(workers):
                    start = m * shared[j] if nesterov else shared[j]
                    U[k][j] = start.flatten() / workers
            update = torch.zeros(w.numel(), dtype=torch.float64)
            for k in range(workers):
                g = grads[k][j].flatten()
                if nesterov:
                    U[k][j] = m * (U[k][j] + g)
                    V[k][j] = V[k][j] + U[k][j] + g
                else:
                    U[k][j] = m * U[k][j] + g
                    V[k][j] = V[k][j] + U[k][j]
                if not velocity_correction:
                    assert m == 0
                count = entries_to_send(w.numel(), density)
                largest = sorted(range(w.numel()), key=lambda i, v=V[k][j]: -abs(v[i].item()))  # type: ignore[misc]
                for i in largest[:count]:
                    update[i] += V[k][j][i]
                    V[k][j][i] = 0
                    if masking:
                        U[k][j][i] = 0
            updates.append(update.view_as(w))
        was_dense = was_dense and density == 1
        with torch.no_grad():
            for j, w in enumerate(weights):
                if velocity_correction:
                    decay[j], push = with_momentum(decay[j], weight_decay * w, momentum)
                    w -= LR * (updates[j] + push)
                else:
                    d = updates[j] + weight_decay * w
                    receiver[j], update = with_momentum(receiver[j], d, momentum)
                    w -= LR * update
    return model


@pytest.mark.parametrize(
    "knobs",
    [
        {"densities": [0.25, 0.05]},
        {"densities": [0.25, 0.05], "masking": False},
        {"densities": [0.05], "nesterov": True, "weight_decay": 0.05},
        {"densities": [0.05], "clip_norm": 0.2},
        {"densities": [0.05], "velocity_correction": False, "weight_decay": 0.05},
        {"densities": [0.05], "velocity_correction": False, "nesterov": True},
        {"densities": [1.0, 0.3, 0.05]},
        {"densities": [1.0, 0.1], "nesterov": True, "clip_norm": 0.2, "weight_decay": 0.05},
        {"densities": [0.05], "momentum": 0.0},
    ],
    ids=lambda knobs: "-".join(knobs),
)
@pytest.mark.parametrize("workers", [1, 4])
def test_trajectory_equals_the_slow_implementation(knobs, workers):
    knobs = {"momentum": 0.9, **knobs}
    slow = by_hand(workers=workers, **knobs)
    *warmup, ratio = knobs.pop("densities")
    method = DeepGradientCompression(
        ratio, warmup_epochs=len(warmup), warmup_densities=warmup, workers=workers, **knobs
    )
    fast, _ = train(method)
    assert_same(fast, slow)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("velocity_correction", [False, True])
def test_ratio_one_is_dense_momentum_sgd(nesterov, velocity_correction):
    plain = make_model()
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=LR, momentum=0.9, nesterov=nesterov, weight_decay=0.02
    )
    for batch in batches():
        optimizer.zero_grad()
        loss_on(plain)(batch).backward()
        optimizer.step()
    method = DeepGradientCompression(
        ratio=1,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.02,
        velocity_correction=velocity_correction,
        workers=4,
    )
    assert_same(train(method)[0], plain)
    assert method.metrics()["comm/ratio_whole_model"] == 1


def test_dense_baseline_is_plain_training_even_for_parts_of_unequal_size():
    for size in (8, 7, 3):  # 3 samples leave one of 4 workers without any
        data = batches(size)
        plain, _ = train(Method(), data)
        method = DataParallel(workers=4)
        assert_same(train(method, data)[0], plain)
        model = make_model()
        method.attach(model)
        loss = method.backward(loss_on(model), data[0], torch.Tensor.backward)
        torch.testing.assert_close(loss, loss_on(model)(data[0]).detach())
        assert not loss.requires_grad


def test_without_momentum_compression_is_gradient_dropping():
    knobs: dict[str, Any] = {"ratio": 0.05, "momentum": 0.0, "warmup_epochs": 1, "workers": 2}
    dgc, _ = train(DeepGradientCompression(**knobs))
    dropping, _ = train(DeepGradientCompression(velocity_correction=False, **knobs))
    assert_same(dgc, dropping, atol=0)


def test_identical_workers_are_one_worker_and_their_order_does_not_matter():
    knobs: dict[str, Any] = {"ratio": 0.05, "warmup_epochs": 1, "clip_norm": None}
    data = batches(4)
    alone, _ = train(DeepGradientCompression(workers=1, **knobs), data)
    thrice = [(x.repeat(3, 1), y.repeat(3)) for x, y in data]
    together, _ = train(DeepGradientCompression(workers=3, **knobs), thrice)
    assert_same(together, alone)

    data = batches(9)
    permuted = [(torch.cat(x.split(3)[::-1]), torch.cat(y.split(3)[::-1])) for x, y in data]
    one, _ = train(DeepGradientCompression(workers=3, **knobs), data)
    other, _ = train(DeepGradientCompression(workers=3, **knobs), permuted)
    assert_same(one, other)


def test_every_tensor_has_its_own_threshold():
    model = nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 10, bias=False))
    method = DeepGradientCompression(ratio=0.05, warmup_epochs=0, workers=1)
    method.attach(model)
    # All large entries are in the first tensor; the second sends its share all the same.
    method.exchange([0, 1], [1000 + torch.rand(1, 200), torch.rand(1, 100)])
    sent = [int((rows == 0).sum()) for rows in method.memory.unsent.values()]
    assert sent == [10, 5]


def test_clipped_independent_workers_sum_to_the_global_threshold():
    workers, threshold = 16, 3.0
    model = nn.Linear(2000, 1, bias=False)
    method = DeepGradientCompression(
        ratio=1, momentum=0, clip_norm=threshold, workers=workers, warmup_epochs=0
    )
    method.attach(model)
    grads = 50 * torch.randn(workers, 2000, generator=torch.Generator().manual_seed(0))
    method.exchange([0], [grads])
    assert grads[0].norm().item() == pytest.approx(threshold, rel=0.1)
    small = torch.full((workers, 2000), 1e-4)
    method.exchange([0], [small])
    torch.testing.assert_close(small[0], torch.full((2000,), 16e-4))


def test_conservation_over_a_cluster():
    """No momentum: everything sent and kept is every gradient that came in."""
    workers = 3
    model = nn.Linear(50, 4, bias=False).double()
    method = DeepGradientCompression(ratio=0.02, momentum=0, warmup_epochs=0, workers=workers)
    method.attach(model)
    generator = torch.Generator().manual_seed(0)
    came_in = sent = torch.zeros(200, dtype=torch.float64)
    for _ in range(20):
        grads = torch.randn(workers, 200, generator=generator, dtype=torch.float64)
        came_in = came_in + grads.sum(0)
        method.exchange([0], [grads])
        sent = sent + grads[0]
    kept = method.memory.unsent["weight"].sum(0)
    torch.testing.assert_close(sent + kept, came_in, rtol=0, atol=1e-12)


def test_the_receiver_is_plain_sgd_unless_gradients_are_dropped():
    model = make_model()
    knobs: dict[str, Any] = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}
    for corrected in (True, False):
        method = DeepGradientCompression(velocity_correction=corrected, **knobs)
        method.attach(model)
        group = method.optimizer(model, sgd).param_groups[0]
        found = {name: group[name] for name in knobs}
        assert found == (
            {"momentum": 0, "nesterov": False, "weight_decay": 0} if corrected else knobs
        )
    with pytest.raises(UserError, match="optimizer=sgd"):
        method.optimizer(model, torch.optim.Adam)


@pytest.mark.parametrize("ratio", [0.1, 1])
def test_fp16_messages_lose_their_rounding_error(ratio):
    model = nn.Linear(10, 1, bias=False)
    method = DeepGradientCompression(
        ratio=ratio, momentum=0, warmup_epochs=0, workers=1, encoding="fp16_int32"
    )
    method.attach(model)
    grads = torch.full((1, 10), 1e-3)
    grads[0, 4] = 1 / 3
    method.exchange([0], [grads])
    assert grads[0, 4].item() == torch.tensor(1 / 3).half().item()
    assert ratio == 1 or method.memory.unsent["weight"][0, 4] == 0


def test_only_tensors_with_enough_dimensions_are_compressed():
    for min_dims, compressed in ((2, {"0.weight", "2.weight"}), (3, set())):
        method = DeepGradientCompression(0.1, warmup_epochs=0, min_dims=min_dims, workers=2)
        train(method, steps=range(2))
        assert set(method.memory.unsent) == compressed
        assert set(method.dense_momentum.velocity) == set(method.names) - compressed
    method = DeepGradientCompression(0.1, warmup_epochs=0, min_dims=1, workers=2)
    train(method, steps=range(2))
    assert set(method.memory.unsent) == set(method.names)


def test_frozen_and_unused_parameters():
    model = make_model()
    model[0].weight.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    before = model[0].weight.clone()
    train(DeepGradientCompression(0.1, workers=2), model=model)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model.unused, torch.ones_like(model.unused))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable"):
        DeepGradientCompression().attach(model)


def test_counted_bytes_of_the_worked_example():
    """MLP 64-256-256-10 at density 0.001: 86 of 84 480 entries, but 522 dense biases."""
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    method = DeepGradientCompression(0.001, warmup_epochs=0, workers=2)
    method.attach(model)
    method.start_epoch(0)
    batch = (torch.randn(4, 64), torch.randint(10, (4,)))
    method.backward(loss_on(model), batch, torch.Tensor.backward)
    metrics = method.metrics()
    assert metrics["comm/sparse_bytes_per_step"] == 86 * 6
    assert metrics["comm/dense_bytes_per_step"] == 522 * 4
    assert round(metrics["comm/ratio_by_count"]) == 982
    assert round(metrics["comm/ratio_by_bytes"]) == 655
    assert metrics["comm/ratio_whole_model"] == pytest.approx(130.57, abs=0.01)


def test_an_epochs_metrics_forget_the_epoch_before():
    """Density 1, and then a tenth, rounded up: 8 of 72 weights and 4 of 36."""
    method = DeepGradientCompression(0.1, warmup_epochs=1, warmup_densities="dense", workers=1)
    train(method, steps=range(2 * STEPS_PER_EPOCH))
    method.start_epoch(1)  # announced once more, as a resumed loop does
    metrics = method.metrics()
    assert metrics["comm/density"] == pytest.approx(12 / 108)
    assert metrics["comm/run_density"] == pytest.approx((12 / 108 + 1) / 2)


def test_signs_of_staleness():
    model = nn.Linear(10, 1, bias=False)
    method = DeepGradientCompression(0.5, momentum=0, warmup_epochs=0, workers=1)
    method.attach(model)
    method.start_epoch(0)
    assert "comm/waiting_steps" not in method.metrics()
    for _ in range(100):  # every entry is sent every other step: half of them wait one step
        method.exchange([0], [torch.ones(1, 10)])
        method.end_step()
    metrics = method.metrics()
    assert metrics["comm/waiting_steps"] == pytest.approx(0.5, rel=0.01)
    assert metrics["comm/unsent_over_gradient"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    "knobs",
    [
        {"selector": "sampled_official", "clip_norm": 0.5, "weight_decay": 0.01},
        {"selector": "random", "nesterov": True},
        {"warmup_densities": "dense", "warmup_epochs": 1},
        {"velocity_correction": False},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, knobs, stop):
    def make():
        return DeepGradientCompression(0.05, workers=3, seed=4, **knobs)

    whole = make()
    model, _ = train(whole)
    first = make()
    half, optimizer = train(first, steps=range(stop))
    states = {
        "model": half.state_dict(),
        "optimizer": optimizer.state_dict(),
        "method": first.state_dict(),
    }
    torch.save(states, tmp_path / "checkpoint")
    train(first, steps=range(stop, stop + 2), model=half, optimizer=optimizer, first_epoch=False)

    states = torch.load(tmp_path / "checkpoint", weights_only=True)
    second, resumed = make(), make_model()
    second.attach(resumed)
    resumed.load_state_dict(states["model"])
    optimizer = second.optimizer(resumed, sgd)
    optimizer.load_state_dict(states["optimizer"])
    second.load_state_dict(states["method"])
    untouched = second.state_dict()  # saving right after loading loses nothing
    assert untouched["memory"] is not None
    assert set(untouched["memory"]["unsent"]) == set(states["method"]["memory"]["unsent"])
    second.start_epoch(stop // STEPS_PER_EPOCH)  # a loop may announce the epoch once more
    rest = range(stop, EPOCHS * STEPS_PER_EPOCH)
    train(second, steps=rest, model=resumed, optimizer=optimizer, first_epoch=False)
    assert_same(resumed, model, atol=0)
    assert second.metrics() == whole.metrics()


def test_a_process_takes_its_own_row_of_a_simulations_memory():
    simulated, other = (DeepGradientCompression(0.1, workers=2) for _ in range(2))
    train(simulated, steps=range(2))
    other.attach(make_model())
    other.load_state_dict(simulated.state_dict())
    other.cluster = SimpleNamespace(size=2, first=1, rows=1)  # type: ignore[assignment]
    other.exchange([], [])
    for name, rows in simulated.memory.unsent.items():
        assert torch.equal(other.memory.unsent[name], rows[1:])


def test_resuming_with_another_number_of_workers_is_refused():
    method = DeepGradientCompression(0.1, workers=2)
    train(method, steps=range(2))
    other = DeepGradientCompression(0.1, workers=4)
    model = make_model()
    other.attach(model)
    other.load_state_dict(method.state_dict())
    with pytest.raises(UserError, match="2 workers; this run has 4"):
        other.backward(loss_on(model), batches()[0], torch.Tensor.backward)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ratio": 0}, "ratio lies in"),
        ({"ratio": 1.5}, "ratio lies in"),
        ({"momentum": 1.0}, "momentum lies in"),
        ({"momentum": 0.0, "nesterov": True}, "method.nesterov"),
        ({"clip_norm": 0}, "clip_norm is positive or null"),
        ({"workers": 0}, "workers is a whole number"),
        ({"selector": "topk"}, "selector is exact, sampled"),
        ({"encoding": "int8"}, "encoding is paper_6B"),
    ],
)
def test_wrong_knobs_are_refused_in_one_line(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        DeepGradientCompression(**knobs)
    assert "\n" not in str(error.value)


def test_the_loop_in_the_package_docstring_runs():
    results = doctest.testmod(repro.methods.dgc)
    assert results.attempted > 10
    assert results.failed == 0


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("none", Method, {}),
        ("dense", DataParallel, {"workers": 4, "seed": 7}),
        (
            "dgc",
            DeepGradientCompression,
            {
                "density": 0.25,
                "densities": [0.25, 0.0625, 0.015625, 0.00390625, 0.001],
                "momentum": 0.8,
                "clip_norm": 2.0,
                "velocity_correction": True,
                "seed": 7,
            },
        ),
        (
            "gradient_dropping",
            DeepGradientCompression,
            {"velocity_correction": False, "densities": [0.001], "momentum": 0.8},
        ),
        ("random_k", DeepGradientCompression, {"velocity_correction": True}),
        ("terngrad", TernGrad, {"clip_sigmas": 2.5, "seed": 7}),
    ],
)
def test_configs_build_the_methods(name, kind, expected):
    folder = str(files("repro.conf") / "method")
    around = {
        "seed": 7,
        "optimizer": {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0},
        "training": {"clip_norm": 2.0},
    }
    with initialize_config_dir(folder, version_base="1.3"):
        config = compose(name)
    # In a run the group hangs below `method`, beside what it refers to.
    method = instantiate({**around, "method": config}, _convert_="all")["method"]
    assert type(method) is kind
    assert {key: getattr(method, key) for key in expected} == expected

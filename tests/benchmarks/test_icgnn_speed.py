"""The learned precoder against WMMSE in a batch, and its parts against naive loops."""

import statistics
import time

import pytest
import torch
from scipy.sparse.linalg import cg

from repro.methods.icgnn import (
    CompleteGraph,
    Downlink,
    InformationCarryingGNN,
    LearnedPrecoder,
    conjugate_gradient,
    wmmse,
)

pytestmark = pytest.mark.benchmark


def seconds(*competitors, turns=5):
    """Median times of functions that take turns, after one turn to warm up."""
    times = [[] for _ in competitors]
    for turn in range(turns + 1):
        for run, own in zip(competitors, times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


@pytest.fixture(autouse=True)
def _one_thread_without_gradients():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("K", "M"), [(8, 8), (6, 32), (16, 64)])
def test_precoding_a_batch_is_faster_than_sixty_iterations(K, M):
    """200 channels; WMMSE in batched form, with matrices of the size of antennas and of users."""
    H = torch.randn(200, K, M, dtype=torch.complex64)
    cell, model = Downlink.of(H, 10.0), LearnedPrecoder(cg_steps=8)
    own, full, reduced = seconds(
        lambda: model(cell),
        lambda: wmmse(cell.H, cell.snr, reduced=False),
        lambda: wmmse(cell.H, cell.snr),
    )
    print(
        f"\n{K}x{M}, 200 channels: learned {1e3 * own:.1f} ms; WMMSE {full / own:.1f} times as "
        f"long, reduced {reduced / own:.1f} times"
    )
    assert own < reduced


def test_conjugate_gradients_in_one_batch_beat_scipy_column_by_column():
    """64 systems of 8 unknowns, 8 right-hand sides each, 8 steps."""
    H = torch.randn(64, 8, 12, dtype=torch.complex128)
    A, B = H @ H.mH + torch.eye(8), torch.eye(8, dtype=torch.complex128).expand(64, 8, 8)

    def one_by_one():
        for matrix, right in zip(A.numpy(), B.numpy(), strict=True):
            for column in right.T:
                cg(matrix, column, maxiter=8, rtol=0)

    batched, loop = seconds(lambda: conjugate_gradient(A, B, 8), one_by_one, turns=3)
    print(f"\n512 systems: {1e3 * batched:.1f} ms in a batch; SciPy one by one {loop / batched:.0f} times")  # fmt: skip  # noqa: E501
    assert batched < loop / 10


def test_messages_of_all_pairs_at_once_beat_a_loop_over_users():
    """One layer of width 32 on 64 graphs of 8 users: first layers split, nodes computed once."""
    net = InformationCarryingGNN(nodes=2, outputs=2, edges=3, layers=1)
    x0, edges = torch.randn(64, 8, 2), torch.randn(64, 8, 8, 3)
    layer = net.layers[0]

    def loop():
        for k in range(8):
            others = [j for j in range(8) if j != k]
            sent = [layer.from_node(x0[:, j]) + layer.from_edge(edges[:, k, j]) for j in others]
            heard = torch.stack([layer.message(each.relu()).relu() for each in sent])
            collected = torch.cat([heard.mean(0), heard.amax(0)], -1)
            net.head(layer.update((layer.keep(x0[:, k]) + layer.hear[0](collected)).relu()))

    batched, looped = seconds(lambda: net(x0, CompleteGraph(edges)), loop)
    print(f"\none layer: {1e3 * batched:.2f} ms; a loop over pairs {looped / batched:.1f} times")
    assert batched < looped

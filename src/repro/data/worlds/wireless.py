"""Simulated radio channels of ever new sizes: cells with many users, and networks without cells.

Every batch is a pure function of (seed, epoch, batch), so training never sees a channel twice and a
resumed run sees those it would have seen. One batch has one size; batches differ in theirs.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import EpochIterator, generator_for
from repro.data.worlds.channels import CellFree, Downlink
from repro.errors import UserError, did_you_mean
from repro.knobs import Count, Fraction, NonNegative, Positive, Share, checked

NOISE_DBM = -94.0  # thermal noise in 20 MHz with a noise figure of 7 dB
TRAIN, VAL, TEST = range(3)

Draw = Callable[[torch.Generator], Any]


class Cell(NamedTuple):
    """A size at which is tested.

    Attributes:
        name: of its metrics.
        seen: whether it lies within what training draws.
        draw: makes a batch of it.
    """

    name: str
    seen: bool
    draw: Draw


class Wireless(LightningDataModule, ABC):
    """What simulators share.

    Args:
        name: of the data set.
        train_batches: batches of an epoch.
        batch_size: channels of a training batch, per process.
        eval_size: channels of each size at which is validated or tested.
        seed: of all channels; runs with the same one are tested on the same.
    """

    @checked
    def __init__(
        self,
        name: str,
        train_batches: Count = 100,
        batch_size: Count = 128,
        eval_size: Count = 200,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.seed = name, seed
        self.train_batches, self.batch_size, self.eval_size = train_batches, batch_size, eval_size

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Any:
        """A training batch of a random size."""

    @abstractmethod
    def cells(self, seen_only: bool = False) -> list[Cell]:
        """The sizes at which is tested, or only those within the training's range."""

    @property
    @abstractmethod
    def problem(self) -> type:
        """What a batch is: `Downlink` or `CellFree`."""

    @property
    def val_cells(self) -> list[Cell]:
        """What is selected by: nothing unseen."""
        return self.cells(seen_only=True)

    @property
    def test_cells(self) -> list[Cell]:
        """All sizes."""
        return self.cells()

    def train_dataloader(self) -> EpochIterator:
        """New channels at every step."""
        return _Training(self)

    def val_dataloader(self) -> EpochIterator:
        """One batch per seen size."""
        return _Evaluation(self.val_cells, (self.seed, VAL))

    def test_dataloader(self) -> EpochIterator:
        """One batch per size."""
        return _Evaluation(self.test_cells, (self.seed, TEST))

    def fingerprint(self) -> dict[str, Any]:
        """Returns a ``sha256`` over the test channels, and the ``sizes`` of the splits."""
        sha = hashlib.sha256()
        for batch in self.test_dataloader().batches(0):
            for part in batch:
                sha.update(part.numpy().data)
        sizes = {
            "train": self.train_batches * self.batch_size,
            "val": len(self.val_cells) * self.eval_size,
            "test": len(self.test_cells) * self.eval_size,
        }
        return {"name": self.name, "sha256": sha.hexdigest(), "sizes": sizes}


def scenario(kind: str, **kinds: Any) -> Wireless:
    """Chooses one of several simulators, so that settings of each can be kept side by side.

    Args:
        kind: which.
        **kinds: simulators by name, such as ``cellular`` and ``cellfree``; and facts of other data
            sets, which are not used: ``task``, ``input_shape``, ``classes``, ``info``.

    Raises:
        UserError: there is none of this name.
    """
    simulators = {name: each for name, each in kinds.items() if isinstance(each, Wireless)}
    if kind not in simulators:
        known = ", ".join(simulators)
        hint = did_you_mean(kind, simulators)
        raise UserError(f"dataset.kind is one of {known}, not '{kind}'.{hint}")
    return simulators[kind]


class _Training(EpochIterator):
    def __init__(self, data: Wireless) -> None:
        super().__init__(data.seed)
        self.data = data

    def __len__(self) -> int:
        return self.data.train_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for batch in range(start, len(self)):
            yield self.data.draw(generator_for(self.seed, TRAIN, epoch, self.rank, batch))


class _Evaluation(EpochIterator):
    """The same batches in every epoch, drawn once."""

    def __init__(self, cells: Sequence[Cell], key: tuple[int, ...]) -> None:
        super().__init__()
        self.drawn = [cell.draw(generator_for(*key, i)) for i, cell in enumerate(cells)]

    def __len__(self) -> int:
        return len(self.drawn)

    @override
    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        yield from self.drawn[start:]


class CellularDownlink(Wireless):
    """One base station and its users: Rayleigh fading, users at different distances.

    Args:
        name: of the data set.
        users: range [low, high] of the number of users in training.
        antennas: largest number of the base station's antennas in training; the least is one for
            each receiving antenna.
        user_antennas: range of the number of antennas of a user in training.
        snr_db: range of P/σ² in training.
        spread_db: gains of the users are uniform within ± this.
        correlation: in [0, 1), between neighbouring antennas of the base station.
        csi_error: in [0, 1), part of the channel's amplitude that the base station gets wrong.
        seen: sizes to test within the training's range: name to users, antennas and, if more than
            one, user_antennas.
        unseen: sizes to test outside of it.
        test_snr_db: every size is tested at each of these.
        **shared: see `Wireless`.

    Raises:
        UserError: a range that is none, or a size with too few antennas.
    """

    @checked
    def __init__(
        self,
        name: str,
        users: Sequence[int],
        antennas: Count,
        seen: Mapping[str, Mapping[str, int]],
        unseen: Mapping[str, Mapping[str, int]],
        user_antennas: Sequence[int] = (1, 1),
        snr_db: Sequence[float] = (5, 25),
        spread_db: NonNegative = 6.0,
        correlation: Fraction = 0.0,
        csi_error: Fraction = 0.0,
        test_snr_db: Sequence[float] = (10, 20),
        **shared: Any,
    ) -> None:
        super().__init__(name, **shared)
        _check_range("users", users, least=1)
        _check_range("user_antennas", user_antennas, least=1)
        _check_range("snr_db", snr_db)
        if antennas < users[1] * user_antennas[1]:
            raise UserError(
                f"dataset.antennas={antennas} are fewer than the {users[1] * user_antennas[1]} "
                "receiving antennas that dataset.users and dataset.user_antennas allow."
            )
        self.users, self.antennas, self.user_antennas = users, antennas, user_antennas
        self.snr_db, self.spread_db = snr_db, spread_db
        self.correlation, self.csi_error = correlation, csi_error
        self.sizes = {"seen": seen, "unseen": unseen}
        self.test_snr_db = test_snr_db

    problem = Downlink

    def draw(self, generator: torch.Generator) -> Downlink:
        """Channels of one random size, each with an SNR of its own."""
        K, N = _whole(self.users, generator), _whole(self.user_antennas, generator)
        M = _whole((K * N, self.antennas), generator)
        low, high = self.snr_db
        snr_db = low + (high - low) * torch.rand(self.batch_size, generator=generator)
        return self._channels(generator, self.batch_size, K, N, M, snr_db)

    def cells(self, seen_only: bool = False) -> list[Cell]:
        """Every size at every SNR, named like ``8x16_10dB``."""
        return [
            Cell(f"{name}_{snr_db:g}dB", kind == "seen", self._drawer(snr_db=snr_db, **size))
            for kind, sizes in self.sizes.items()
            if kind == "seen" or not seen_only
            for name, size in sizes.items()
            for snr_db in self.test_snr_db
        ]

    def _drawer(self, users: int, antennas: int, snr_db: float, user_antennas: int = 1) -> Draw:
        if antennas < users * user_antennas:
            raise UserError(
                f"A size to test has {users * user_antennas} receiving antennas and only "
                f"{antennas} at the base station."
            )

        def draw(generator: torch.Generator) -> Downlink:
            snr = torch.full((self.eval_size,), float(snr_db))
            return self._channels(generator, self.eval_size, users, user_antennas, antennas, snr)

        return draw

    def _channels(
        self, generator: torch.Generator, B: int, K: int, N: int, M: int, snr_db: Tensor
    ) -> Downlink:
        gain_db = self.spread_db * (2 * torch.rand(B, K, 1, 1, generator=generator) - 1)
        angle = 2 * math.pi * torch.rand(B, K, 1, 1, generator=generator)

        def fading() -> Tensor:
            h = torch.randn(B, K, N, M, dtype=torch.complex64, generator=generator)
            if self.correlation:
                phase = torch.polar(torch.ones(()), angle * torch.arange(M))
                h = phase * (h @ correlating(M, self.correlation).to(h.dtype).mT)
            return 10 ** (gain_db / 20) * h

        known = fading()
        H = known
        if self.csi_error:
            H = math.sqrt(1 - self.csi_error**2) * known + self.csi_error * fading()
        return Downlink(H, 10 ** (snr_db / 10), known)


class CellFreeNetwork(Wireless):
    """Access points and users scattered over a square that wraps around.

    Args:
        name: of the data set.
        access_points: range [low, high] of their number in training.
        users: likewise.
        antennas: likewise, of each access point.
        coverage: a user is served by the strongest access points with this part of its total gain.
        pilots: number of orthogonal pilots, handed out in turn; null: one for each user.
        seen: sizes to test within the training's range: name to access_points, users and, where
            they differ from training, antennas (a range) and coverage.
        unseen: sizes to test outside of it.
        side_km: of the square.
        power_w: largest power of an access point.
        pilot_energy: of a pilot, W times symbols.
        shadowing_db: standard deviation of the log-normal shadowing.
        **shared: see `Wireless`.

    Raises:
        UserError: a range that is none, or a number out of range.
    """

    @checked
    def __init__(
        self,
        name: str,
        access_points: Sequence[int],
        users: Sequence[int],
        antennas: Sequence[int],
        seen: Mapping[str, Mapping[str, Any]],
        unseen: Mapping[str, Mapping[str, Any]],
        coverage: Share = 0.9,
        pilots: Count | None = None,
        side_km: Positive = 1.0,
        power_w: Positive = 0.2,
        pilot_energy: Positive = 1.0,
        shadowing_db: NonNegative = 4.0,
        **shared: Any,
    ) -> None:
        super().__init__(name, **shared)
        ranges = {"access_points": access_points, "users": users, "antennas": antennas}
        for knob, span in ranges.items():
            _check_range(knob, span, least=1)
        self.access_points, self.users, self.antennas = access_points, users, antennas
        self.coverage, self.pilots, self.side_km = coverage, pilots, side_km
        self.power_w, self.pilot_energy, self.shadowing_db = power_w, pilot_energy, shadowing_db
        self.sizes = {"seen": seen, "unseen": unseen}

    problem = CellFree

    def draw(self, generator: torch.Generator) -> CellFree:
        """Networks of one random size."""
        L, K = _whole(self.access_points, generator), _whole(self.users, generator)
        return self._networks(generator, self.batch_size, L, K, self.antennas, self.coverage)

    def cells(self, seen_only: bool = False) -> list[Cell]:
        """The sizes under their names."""
        return [
            Cell(name, kind == "seen", self._drawer(**size))
            for kind, sizes in self.sizes.items()
            if kind == "seen" or not seen_only
            for name, size in sizes.items()
        ]

    def _drawer(
        self,
        access_points: int,
        users: int,
        antennas: Sequence[int] | None = None,
        coverage: float | None = None,
    ) -> Draw:
        span = self.antennas if antennas is None else antennas
        part = self.coverage if coverage is None else coverage
        _check_range("antennas", span, least=1)
        return lambda generator: self._networks(
            generator, self.eval_size, access_points, users, span, part
        )

    def _networks(
        self,
        generator: torch.Generator,
        B: int,
        L: int,
        K: int,
        antennas: Sequence[int],
        coverage: float,
    ) -> CellFree:
        side = 1000 * self.side_km
        where = side * torch.rand(B, L + K, 2, generator=generator)
        apart = (where[:, :L, None] - where[:, None, L:]).abs()
        apart = torch.minimum(apart, side - apart)  # around the edge if that is shorter
        distance = (apart.square().sum(-1) + 10.0**2).sqrt()  # access points hang 10 m higher
        shadowing = self.shadowing_db * torch.randn(B, L, K, generator=generator)
        gain_db = -30.5 - 36.7 * distance.log10() + shadowing
        beta = 10 ** ((gain_db - (NOISE_DBM - 30)) / 10)
        low, high = antennas
        count = torch.randint(low, high + 1, (B, L), generator=generator).float()
        pilots = torch.arange(K) % (K if self.pilots is None else self.pilots)
        return CellFree(
            beta=beta,
            mask=strongest(beta, coverage),
            antennas=count,
            limit=torch.full((B, L), self.power_w),
            pilot_energy=torch.full((B,), self.pilot_energy),
            pilots=pilots.expand(B, K).contiguous(),
        )


@checked
def strongest(beta: Tensor, coverage: Share) -> Tensor:
    """Which access points serve a user: the strongest that together have part of its gain.

    Args:
        beta: (B, L, K).
        coverage: in (0, 1]; the least number of them that reaches it, one at least.

    Returns:
        (B, L, K) boolean.
    """
    ordered, order = beta.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered  # the gain of those that are stronger
    needed = before < coverage * beta.sum(1, keepdim=True)
    return torch.zeros_like(needed).scatter(1, order, needed)


def correlating(M: int, correlation: float) -> Tensor:
    """L (M, M) with (L Lᵀ)_mn = correlation^|m−n|: the Cholesky factor in closed form."""
    index = torch.arange(M)
    lag = index[:, None] - index
    factor = correlation ** lag.clamp(min=0).float() * (lag >= 0)
    factor[:, 1:] *= math.sqrt(1 - correlation**2)
    return factor


def _check_range(knob: str, span: Sequence[float], least: float = -math.inf) -> None:
    if len(span) != 2 or not least <= span[0] <= span[1]:
        from_least = "" if math.isinf(least) else f" from {least:g} on"
        raise UserError(f"dataset.{knob} is a range [low, high]{from_least}, not {list(span)}.")


def _whole(span: Sequence[int], generator: torch.Generator) -> int:
    """A whole number, uniform over a range with its ends."""
    return int(torch.randint(span[0], span[1] + 1, (), generator=generator))

"""RADIANCE: coverage maps of rooms from a network, with and without matching gradients.

A discriminator learns beside it, on the same maps. The bar is the formula for free space, which
needs no training. Run it: ``python examples/radiance.py``.
"""

import torch
import yaml

from repro.data.worlds.coverage import CoverageMaps
from repro.methods.radiance import MapLoss, adversarial_loss, judged
from repro.models.vision.translation import PatchGAN, ResizeUNet
from repro.toolbox.image_quality import ms_ssim

torch.set_num_threads(1)
MATERIALS = yaml.safe_load("""
concrete: {loss: 12.0, loss_per_ghz: 0.35, reflection: 6.0}
glass: {loss: 2.5, loss_per_ghz: 0.1, reflection: 10.0}
""")
data = CoverageMaps(
    size=32, rooms={}, materials=MATERIALS, radio={}, p_min=-110.0, p_max=-20.0, val_maps=1,
    train={"maps": 96, "beams": [25.0, 40.0, 70.0], "ghz": [2.4, 28.0]},
    test={"new rooms": {}}, test_maps=50, task="regression", batch_size=16,
)  # fmt: skip
x, y, free, *_ = next(iter(data.test_dataloader()))


def adam(model: torch.nn.Module, rate: float) -> torch.optim.Adam:
    """The optimizer of either network."""
    return torch.optim.Adam(model.parameters(), lr=rate, betas=(0.5, 0.999))


def train(name: str, weights: dict[str, float], epochs: int = 4) -> None:
    """Prints how far maps of new rooms are from the ray tracer's."""
    torch.manual_seed(0)
    generator = ResizeUNet([5, 32, 32], width=8)
    discriminator = PatchGAN(6, width=8, strides=[2, 2], head=3, norm=False, deviation=None)
    of_maps = MapLoss(weights)
    optimizer, adversary = adam(generator, 2e-3), adam(discriminator, 5e-4)
    batches = data.train_dataloader()
    for _ in range(epochs):
        for condition, real in batches:
            fake = generator(condition)
            adversary.zero_grad()
            judged(discriminator, condition, real, fake).loss().backward()
            adversary.step()
            optimizer.zero_grad()
            loss = adversarial_loss(discriminator, condition, fake) + of_maps(fake, real)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        show(name, generator(x))


def show(name: str, maps: torch.Tensor) -> None:
    """Prints error and similarity."""
    error, alike = (maps - y).abs().mean(), ms_ssim(maps, y).mean()
    print(f"{name}: mean absolute error {error:.3f}, similarity {alike:.3f}")


show("free space", free)
train("GAN", {"l1": 100.0})
train("GAN with gradients", {"l1": 100.0, "magnitude": 100.0, "direction": 2.0})

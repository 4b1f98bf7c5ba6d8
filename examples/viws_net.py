"""ViWS-Net: one network takes haze off videos, and learns not to tell rain, haze and snow apart.

Messengers carry information between frames; the weather discriminator sits behind a gradient
reversal. Run it: ``python examples/viws_net.py``.
"""

import torch

from repro.data.images.videos import weather_clips
from repro.methods.viws_net import ViWSNet, restoration_loss, weather_loss
from repro.toolbox.gradient_reversal import dann_strength
from repro.toolbox.image_quality import psnr, to_8_bit

STEPS = 40
data = weather_clips(
    input_shape=[3, 3, 32, 32],  # three frames
    scenes={"train": ["coffee", "china"], "val": ["brick"], "test": ["flower"]},
    items={"train": 2 * STEPS, "val": 1, "test": 10},
    task="regression",
    batch_size=2,  # clips of each weather
)

torch.manual_seed(0)
net = ViWSNet(
    encoder={
        "widths": [16, 32], "depths": [2, 2], "heads": [2, 2], "ratios": [2.0, 2.0],
        "reductions": [2, 1], "drop_path": 0.0, "kernel": 3, "convs": 0,
    },
    messengers=12, decoder_depth=1, decoder_heads=2, tail_width=8, tail_residual=True,
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step, (clips, clean, weather, _) in enumerate(data.train_dataloader(), start=1):
    restored = net(clips)
    strength = dann_strength(step / STEPS)
    named = weather_loss(net.discriminator, restored.pixels, weather, strength)
    loss = restoration_loss(restored.centre, clean) + 0.05 * named
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

clips, clean, weather, _ = next(iter(data.test_dataloader()))
with torch.no_grad():
    centre = net.eval()(clips).centre
for number, name in enumerate(("rain", "haze", "snow")):
    of_it = weather == number
    before, after = (
        psnr(to_8_bit(frames[of_it]), to_8_bit(clean[of_it])).mean()
        for frames in (clips[:, 1], centre)
    )
    print(f"{name}: {before:.1f} dB as it came, {after:.1f} dB restored")
print(f"the discriminator's cross-entropy at the end: {named:.2f} (chance: 1.10)")

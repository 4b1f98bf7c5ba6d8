"""ViWS-Net: one network that restores videos in rain, haze and snow (Yang et al., ICCV 2023).

A few **messenger tokens** ride through the encoder with every frame and are passed on in time
(`TemporalShift`); a **weather discriminator** behind a gradient reversal makes the pixels' features
say less of the weather (`weather_loss`); a decoder asks these features with the messengers as
queries, and what it predicts is taken off the frames. In a plain loop::

    import torch
    from repro.methods.viws_net import ViWSNet, restoration_loss, weather_loss
    from repro.toolbox.gradient_reversal import dann_strength

    small = dict(widths=[16, 32], depths=[2, 2], heads=[2, 2], ratios=[2.0, 2.0],
                 reductions=[2, 1], drop_path=0.0, kernel=3, convs=0)
    net = ViWSNet(encoder=small, messengers=12, decoder_depth=1, decoder_heads=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    clips, clean = torch.rand(6, 3, 3, 32, 32), torch.rand(6, 3, 32, 32)   # (B, T, 3, H, W)
    weather = torch.arange(6) % 3
    for step in range(3):
        restored = net(clips)
        loss = restoration_loss(restored.centre, clean)
        loss = loss + 0.05 * weather_loss(
            net.discriminator, restored.pixels, weather, dann_strength((step + 1) / 3)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

Shape legend: B clips, T frames, N = B T, M messengers, C channels, H and W of a frame.
"""

from repro.methods.viws_net.adversary import (
    GatedAttention,
    WeatherDiscriminator,
    adversary_labels,
    weather_loss,
)
from repro.methods.viws_net.baselines import FrameFilter, FrameWise
from repro.methods.viws_net.network import Restored, ViWSNet, restoration_loss
from repro.methods.viws_net.shift import TemporalShift
from repro.methods.viws_net.tiles import restore_tiled

__all__ = [
    "FrameFilter",
    "FrameWise",
    "GatedAttention",
    "Restored",
    "TemporalShift",
    "ViWSNet",
    "WeatherDiscriminator",
    "adversary_labels",
    "restoration_loss",
    "restore_tiled",
    "weather_loss",
]

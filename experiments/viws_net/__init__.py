"""ViWS-Net: one network that restores videos in rain, haze and snow."""

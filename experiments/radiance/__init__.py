"""RADIANCE: coverage maps by a conditional GAN that matches gradients."""

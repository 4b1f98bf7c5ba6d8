"""Scale Mixtures of Neural Network Gaussian Processes (Lee, Yun, Yang, Lee; ICLR 2022)."""

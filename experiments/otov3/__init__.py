"""Room of OTOv3: one training, and out comes a smaller network that computes the same."""

"""Room of the paper on learning rates as a function of batch size, by random matrix theory."""

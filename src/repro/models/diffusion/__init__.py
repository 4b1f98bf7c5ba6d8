"""Networks that predict noise."""

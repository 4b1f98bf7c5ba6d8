"""Tables of numbers, bundled, from UCI, or simulated."""

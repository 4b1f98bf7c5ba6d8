"""Networks for sequences of symbols."""

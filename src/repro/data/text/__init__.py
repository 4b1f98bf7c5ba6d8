"""Sequences of symbols: language, questions, arithmetic."""

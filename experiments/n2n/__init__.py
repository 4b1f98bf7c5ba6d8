"""N2N learning: networks compressed by a policy that removes and shrinks layers."""

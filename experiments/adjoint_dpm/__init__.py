"""Score estimation by tangent-kernel regression (Han, Razaviyayn, Xu; arXiv 2401.15604)."""

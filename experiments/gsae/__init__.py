"""Features that Make a Difference (Olmo et al.; Findings of NAACL 2025; arXiv 2411.10397)."""

"""AccelAT (Nikfam, Marchisio, Martina, Shafique; IEEE Access 2022; arXiv 2210.06888)."""

"""Deep Gradient Compression (Lin, Han, Mao, Wang, Dally; ICLR 2018; arXiv 1712.01887)."""

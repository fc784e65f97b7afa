"""Data: each file lists the pairs of one family of data sets; ``PairModule`` loads them all."""

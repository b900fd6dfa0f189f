"""Times `ppl_em` against other libraries: interleaved in one run, each in a process of its own, as ratios."""

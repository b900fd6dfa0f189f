"""One engine per file: exact elimination of latent variables by plain tensor mathematics."""

"""One update in, one out: clip, sparsify, quantize, noise, optimize."""

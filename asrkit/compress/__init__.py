"""Compression of trained networks: pruning schemes, training to sparsity, generated code, latency tables, mapping."""

"""Systems, Gramians, Hankel singular values and balancing: pure functions on tensors."""

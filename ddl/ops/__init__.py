"""The operations on the residual state, each as a function of tensors beside its equation."""

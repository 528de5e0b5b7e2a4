"""TIR kernels, one file for each operation, a naive NumPy reference beside each, in
`formulas`, or in a version's `reference`."""

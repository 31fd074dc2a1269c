"""Fast whole-buffer operations of the hot path; installs as `distill_rt.kernels`."""

# The folder is `kernels/` in the source tree. Imported under that name it would be a second copy of every class.
if __name__ != "distill_rt.kernels":
    raise ImportError("import this package as distill_rt.kernels (pip install . first), not from the source tree")

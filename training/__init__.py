"""Distillation: teacher, methods, trainer, recipes; installs as `distill_rt.training`."""

# The folder is `training/` in the source tree. Imported under that name it would be a second copy of every class.
if __name__ != "distill_rt.training":
    raise ImportError("import this package as distill_rt.training (pip install . first), not from the source tree")

"""Samplers: each a short pure function that compiles (noise process, prediction, times) to a `StepTable`.

``times`` are the process times at which the network is evaluated, strictly falling; after the last one the sampler goes
to ``end``, a process time, or to clean data (None). Modules hold one family each; `from_scheduler` builds the same
families from a published scheduler configuration.
"""

"""Step tables from published scheduler configurations, one module per family; see `distill_rt.core.scheduler_config`.

Tables keep the state in the coordinates of the noise process (unit variance), also where the scheduler of that name works on
x / alpha: network inputs and samples are the same, intermediate states differ by alpha.
"""

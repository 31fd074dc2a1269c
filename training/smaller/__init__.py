"""Smaller students: a spec with fewer or narrower blocks, and a network of it that starts from the big one's weights."""

from distill_rt.training.smaller.cost import Cost, network_cost
from distill_rt.training.smaller.spec import Blocks, smaller_spec
from distill_rt.training.smaller.start import Smaller, smaller_network

__all__ = ["Blocks", "Cost", "Smaller", "network_cost", "smaller_network", "smaller_spec"]

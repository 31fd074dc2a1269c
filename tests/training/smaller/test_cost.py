"""Counts, against pencil and paper."""

import torch
from closed_forms import plain_spec

from distill_rt.models import build_network
from distill_rt.training.recipes import RECIPES
from distill_rt.training.smaller import Cost, network_cost, smaller_spec


def test_linear_layers():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 5), torch.nn.Linear(5, 3, bias=False))

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, time):
            return self.inner(x)

    assert network_cost(plain_spec(3), Toy()) == Cost(parameters=15 + 5 + 15, flops=2 * (15 + 15))


def test_the_residual_network():
    spec = RECIPES["grid25-labelled-teacher"]().spec
    width, blocks = 128, 4
    time = 64 * width + width * width
    flops = 2 * (time + 2 * width + blocks * 4 * width * width + 2 * width)
    assert network_cost(spec, build_network(spec.networks[0])).flops == flops


def test_half_the_width_of_a_unet_is_about_a_quarter():
    spec = RECIPES["digits-teacher"]().spec
    half = smaller_spec(spec.networks[0], width=0.5, blocks="all")
    costs = [network_cost(spec, build_network(network)) for network in (spec.networks[0], half)]
    # Of the layers only the first and the last do not scale with the square, of the parameters biases and norms.
    assert 0.25 < costs[1].flops / costs[0].flops < 0.26
    assert 0.25 < costs[1].parameters / costs[0].parameters < 0.26

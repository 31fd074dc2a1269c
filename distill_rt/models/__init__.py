"""Layer 1: the networks themselves (torch), around diffusers' classes, and the student directory that holds them."""

from distill_rt.models.networks import NETWORKS, build_decoder, build_network, build_text_encoder
from distill_rt.models.student import Student, load_student, save_student

__all__ = [
    "Student",
    "load_student",
    "save_student",
    "NETWORKS",
    "build_network",
    "build_text_encoder",
    "build_decoder",
]

"""What every backend on NVIDIA GPUs shares: the driver, programs whose tensors live on the device, and kernel packs.

Not run on a GPU yet. The tests run all of it on a driver of their own, whose device memory is the host's and whose captured
graphs are replayed (`tests/support/fake_cuda.py`).
"""

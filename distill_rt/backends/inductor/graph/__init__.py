"""An exported ONNX graph as a torch module that `torch.export` takes."""

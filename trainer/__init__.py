"""Trainer: makes the ONNX networks that rcm-daemon serves."""

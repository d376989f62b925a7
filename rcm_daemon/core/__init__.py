"""Pure functions and frozen records: no socket, file, clock or ONNX session."""

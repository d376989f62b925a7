"""What a model is: a folder of two networks with a manifest, verified, and run through ONNX Runtime.

From folder to answers: `location` finds it, `manifest` says what it must be, `verify` reads it once,
`sessions` runs it, `field` brings a slice to the field it was trained on, `check` proves it on this machine.
"""

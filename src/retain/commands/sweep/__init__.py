"""The stability-plasticity curve of methods over a knob, each branch from what all branches share."""

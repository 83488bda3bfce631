"""Stands for torchvision, of which SpikingJelly's model files want one function that the tests never call."""

"""Times a whole training step of a SEW ResNet, sewsnn beside other implementations."""

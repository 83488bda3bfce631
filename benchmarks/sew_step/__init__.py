"""A whole training step of a SEW ResNet, sewsnn beside what else there is."""

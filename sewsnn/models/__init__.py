"""Networks by name: :func:`create_model`, :func:`list_models`."""

from sewsnn.models.blocks import BasicBlock, Bottleneck
from sewsnn.models.network import Network
from sewsnn.models.pooled_net import PooledNet
from sewsnn.models.registry import create_model, list_models, register_model
from sewsnn.models.sew_resnet import SEWResNet

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Network",
    "PooledNet",
    "SEWResNet",
    "create_model",
    "list_models",
    "register_model",
]

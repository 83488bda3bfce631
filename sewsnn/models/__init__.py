"""Networks by name (:func:`create_model`, :func:`list_models`) and their weights (:func:`load_checkpoint`).

>>> import torch, sewsnn
>>> net = sewsnn.models.create_model("sew_resnet18", num_classes=10, T=4)
>>> logits = net(torch.randn(1, 3, 64, 64))  # [N, num_classes]
"""

from sewsnn.models.blocks import BasicBlock, Bottleneck
from sewsnn.models.checkpoint import LoadReport, load_checkpoint, save_checkpoint, to_dialect
from sewsnn.models.convert import convert_checkpoint
from sewsnn.models.dialects import DIALECTS
from sewsnn.models.network import Network
from sewsnn.models.pooled_net import PooledNet
from sewsnn.models.registry import create_model, list_models, register_model
from sewsnn.models.sew_resnet import SEWResNet

__all__ = [
    "DIALECTS",
    "BasicBlock",
    "Bottleneck",
    "LoadReport",
    "Network",
    "PooledNet",
    "SEWResNet",
    "convert_checkpoint",
    "create_model",
    "list_models",
    "load_checkpoint",
    "register_model",
    "save_checkpoint",
    "to_dialect",
]

"""Networks by name: :func:`create_model`, :func:`list_models`."""

from sewsnn.models import sew_resnet as _sew_resnet  # registers its models
from sewsnn.models.registry import create_model, list_models, register_model
from sewsnn.models.sew_resnet import BasicBlock, Bottleneck, SEWResNet

__all__ = ["BasicBlock", "Bottleneck", "SEWResNet", "create_model", "list_models", "register_model"]

del _sew_resnet

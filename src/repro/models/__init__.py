"""Networks, each readable from top to bottom.

Every classifier is built from ``(input_shape, classes, ...)``, with ``input_shape`` the shape of
one example without the batch dimension, so that any data set's sizes fit any model.
"""

from repro.models.alexnet import AlexNet
from repro.models.chain import Chain
from repro.models.llama import Llama
from repro.models.lstm_lm import LSTMLanguageModel
from repro.models.mlp import MLP
from repro.models.mobilenet import MobileNet
from repro.models.plain_cnn import PlainCNN
from repro.models.resnet_cifar import ResNetCIFAR
from repro.models.resnet_imagenet import ResNetImageNet
from repro.models.small_cnn import SmallCNN
from repro.models.vit import VisionTransformer

__all__ = [
    "MLP",
    "AlexNet",
    "Chain",
    "LSTMLanguageModel",
    "Llama",
    "MobileNet",
    "PlainCNN",
    "ResNetCIFAR",
    "ResNetImageNet",
    "SmallCNN",
    "VisionTransformer",
]

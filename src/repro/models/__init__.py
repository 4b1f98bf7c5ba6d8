"""Networks, each readable from top to bottom.

Every classifier is built from ``(input_shape, classes, ...)``, with ``input_shape`` the shape of
one example without the batch dimension, so that any data set's sizes fit any model.
"""

from repro.models.language.llama import Llama
from repro.models.language.lstm_lm import LSTMLanguageModel
from repro.models.parts.chain import Chain
from repro.models.toys.mlp import MLP
from repro.models.toys.row_rnn import RowRNN
from repro.models.vision.alexnet import AlexNet
from repro.models.vision.mobilenet import MobileNet
from repro.models.vision.plain_cnn import PlainCNN
from repro.models.vision.preact_resnet import PreActResNet
from repro.models.vision.resnet_cifar import ResNetCIFAR
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.models.vision.small_cnn import SmallCNN
from repro.models.vision.vgg import VGG
from repro.models.vision.vit import VisionTransformer

__all__ = [
    "MLP",
    "VGG",
    "AlexNet",
    "Chain",
    "LSTMLanguageModel",
    "Llama",
    "MobileNet",
    "PlainCNN",
    "PreActResNet",
    "ResNetCIFAR",
    "ResNetImageNet",
    "RowRNN",
    "SmallCNN",
    "VisionTransformer",
]

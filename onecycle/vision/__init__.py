"""Small vision models, data sets that are ready to be trained on, and augmentation of images.

Nothing else imports torchvision, and this does so only where it is used.
"""

from onecycle.vision.augment import Augmentation, Cutout, RandomCrop, RandomFlip
from onecycle.vision.datasets import cifar10, digits, image_folder, mnist
from onecycle.vision.models import digits_cnn, lenet, resnet9, resnet56

__all__ = [
    "Augmentation",
    "Cutout",
    "RandomCrop",
    "RandomFlip",
    "cifar10",
    "digits",
    "digits_cnn",
    "image_folder",
    "lenet",
    "mnist",
    "resnet9",
    "resnet56",
]

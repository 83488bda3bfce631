"""The handwritten digits that come with scikit-learn: 1,797 real images of 8 x 8 pixels in ten classes. No download is
needed.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), its test part.
"""

import torch

from sewsnn.data.images import ImagesInMemory
from sewsnn.data.source import Options
from sewsnn.errors import UserError

SPLIT_SEED = 0  # the split does not depend on the seed of the run
TEST_FRACTION = 0.2


def open_digits(options: Options) -> ImagesInMemory:
    """Opens the digits: 1,437 training and 360 test images with values in [0, 1], split with equal class shares.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("data.name: digits needs scikit-learn. Run pip install 'sewsnn[train]'") from None
    data = load_digits()
    parts = train_test_split(
        data.images, data.target, test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=data.target
    )
    train_images, test_images = (torch.from_numpy(p).float().div_(16).unsqueeze_(1) for p in parts[:2])
    train_labels, test_labels = (torch.from_numpy(p).long() for p in parts[2:])
    return ImagesInMemory((train_images, train_labels), (test_images, test_labels), 10, options)

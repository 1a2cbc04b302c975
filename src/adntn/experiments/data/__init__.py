"""Image data sets, read from local files into memory, for the experiments.

Every source becomes the same thing, an :class:`ImageData` of ``uint8`` images, so that an experiment does not
know whether it sees scikit-learn's digits, IDX files, parquet files or CIFAR-10's binary batches. What is
read is checked against what its header promises, because a half-read data set trains without complaint and
is only noticed, if at all, in the accuracy.

Three rules hold throughout: nothing is ever unpickled (a pickle runs code), the network is used only when
``download=True`` asks for it, and a file that is not what it should be is a :class:`DataError` that names it.

One file for each kind of source, and each imports only from those above it::

    images.py    what a data set is; a smaller one, a normalised one
    reading.py   what the readers share
    digits.py   idx.py   parquet.py
    cifar10.py   its binary batches, and CIFAR-10 by name
    load.py      by name or from a folder
"""

from __future__ import annotations

from adntn.experiments.data.cifar10 import CIFAR10_REPOSITORY, CIFAR10_REVISION
from adntn.experiments.data.idx import FASHION_MNIST_FOLDER
from adntn.experiments.data.images import DataError, ImageData, Split, normalize
from adntn.experiments.data.load import KNOWN, load_data

__all__ = [
    "CIFAR10_REPOSITORY",
    "CIFAR10_REVISION",
    "FASHION_MNIST_FOLDER",
    "KNOWN",
    "DataError",
    "ImageData",
    "Split",
    "load_data",
    "normalize",
]

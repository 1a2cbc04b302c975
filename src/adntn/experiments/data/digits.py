"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from adntn.experiments.data.images import ImageData, apportion
from adntn.experiments.data.reading import assemble, make_split, require


def load_digits() -> ImageData:
    """Read the digits that ship with scikit-learn, in a fixed split of 1,297 and 500."""
    purpose = "the data set 'digits'"
    bunch = require("sklearn.datasets", "run", purpose).load_digits()
    version = require("sklearn", "run", purpose).__version__
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    labels = np.asarray(bunch.target, dtype=np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    for index, places in enumerate(apportion(np.bincount(labels), 500)):
        members = np.flatnonzero(labels == index)
        # Evenly over the file, where neighbours come from one writer: both splits see the writers alike, and
        # no version of any random generator can change the choice.
        held_out[members[(2 * np.arange(places) + 1) * len(members) // (2 * places)]] = True
    return assemble(
        "digits",
        "Digits",
        make_split(images[~held_out], labels[~held_out]),
        make_split(images[held_out], labels[held_out]),
        f"scikit-learn {version}, load_digits, fixed split",
    )

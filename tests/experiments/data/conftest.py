"""What the tests of data sets share; the makers of small ones are in ``data_makers.py``."""

from __future__ import annotations

import pytest

from adntn.experiments.data import ImageData, load_data


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")

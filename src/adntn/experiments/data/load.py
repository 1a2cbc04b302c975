"""From a name or a folder to a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adntn.errors import nearest
from adntn.experiments.data.cifar10 import CIFAR10_REPOSITORY, load_batches, load_cifar10
from adntn.experiments.data.digits import load_digits
from adntn.experiments.data.idx import load_fashion_mnist, load_idx
from adntn.experiments.data.images import DataError, ImageData
from adntn.experiments.data.parquet import load_parquet

KNOWN = ("digits", "fashion-mnist", "cifar10")
"""Names that :func:`load_data` knows without being given a folder."""

# What a folder may hold, in the order in which it is looked for.
_LAYOUTS: dict[str, Callable[[Path], ImageData | None]] = {
    "IDX files (train-images-idx3-ubyte, …, plain or .gz)": load_idx,
    "parquet files (train*.parquet and test*.parquet)": load_parquet,
    "CIFAR-10's binary batches (data_batch_1.bin … test_batch.bin)": load_batches,
}

_PICKLED = ("data_batch_1", "test_batch", "batches.meta", "cifar-10-batches-py", "cifar-10-python.tar.gz")
_PACKED = "cifar-10-binary.tar.gz"


def load_data(name_or_folder: str | Path, *, download: bool = False) -> ImageData:
    """Read a data set, by name or from a folder.

    Names:

    - ``"digits"``: scikit-learn's 1,797 real handwritten digits, (N, 1, 8, 8). Their 17 grey levels 0..16 are
      scaled to 0..255 and rounded, which keeps all 17 apart. The split is fixed: 1,297 to train and 500 to
      test, every class in proportion, the test images spread evenly over the file; no random number takes
      part.
    - ``"fashion-mnist"``: the IDX files that Debian's package ``dataset-fashion-mnist`` installs.
    - ``"cifar10"``: one pinned commit of the Hugging Face copy, from the local Hugging Face cache if it is
      there already, otherwise downloaded, and only with ``download=True``.

    A folder is recognised by what it holds, looked for in this order:

    - IDX files, plain or gzip: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-…`` (MNIST,
      Fashion-MNIST, KMNIST, …), in the folder or in its ``raw``;
    - parquet files ``train*.parquet`` and ``test*.parquet`` with columns ``img`` or ``image`` (a struct with
      PNG or JPEG ``bytes``) and ``label``, in the folder or in its ``plain_text`` or ``data``. Images are
      decoded to RGB, or to one channel when every one of them is grey. 32×32 colour images of 10 classes are
      called CIFAR-10, unless the file names other classes;
    - CIFAR-10's *binary* batches ``data_batch_1.bin`` … ``test_batch.bin``, in the folder or in its
      ``cifar-10-batches-bin``.

    Args:
        name_or_folder: one of :data:`KNOWN`, or a folder. A known name wins over a folder of that name: write
            ``"./digits"`` for the folder. A ``Path`` is a folder if there is one.
        download: use the network if the data set is not on this machine; only ``"cifar10"`` can be.

    Returns:
        The data set, both splits in memory.

    Raises:
        DataError: the name is not known, the folder holds nothing that can be read, a file is truncated,
            foreign or contradicts another, a package that is needed is missing, or the download failed.
    """
    text = str(name_or_folder)
    folder = Path(name_or_folder).expanduser()
    if text in KNOWN and not (isinstance(name_or_folder, Path) and folder.is_dir()):
        if text == "digits":
            return load_digits()
        if text == "fashion-mnist":
            return load_fashion_mnist()
        return load_cifar10(download=download)
    if text and folder.is_dir():
        return _load_folder(folder)
    if text and folder.exists():
        raise DataError(f"{text} is a file; give the folder that holds the data set")
    known = ", ".join(KNOWN)
    if "/" in text or "\\" in text:
        raise DataError(f"there is no folder {text}; give a folder that exists, or one of {known}")
    raise DataError(
        f"data set {text!r} is not known, and there is no folder of that name; "
        f"give a folder, or one of {known}.{nearest(text.lower(), KNOWN)}"
    )


def _load_folder(folder: Path) -> ImageData:
    for load in _LAYOUTS.values():
        data = load(folder)
        if data is not None:
            return data
    seen = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in seen if name in _PICKLED or name.endswith((".pkl", ".pickle"))]
    if pickled:
        raise DataError(
            f"{folder} holds pickled files ({', '.join(pickled)}), which are refused: unpickling a file runs "
            f"whatever code its author put in. Instead download CIFAR-10's binary version ({_PACKED}, the "
            f"one 'suitable for C programs') and unpack it, or take the parquet files of {CIFAR10_REPOSITORY}"
        )
    if _PACKED in seen:
        raise DataError(f"{folder} holds {_PACKED}: unpack it, then give the folder with its .bin files")
    listing = ", ".join(seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    raise DataError(f"{folder} holds no data set. Looked for {'; '.join(_LAYOUTS)}. Saw {listing or 'nothing'}")

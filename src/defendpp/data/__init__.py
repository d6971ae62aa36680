"""Images in [0, 1] and labels, with fixed train, validation and test splits, from a name, a folder or parquet files."""

from defendpp.data.dataset import Data, from_tensors, load
from defendpp.data.images import Images, InMemory, batches, crop_and_flip, digest

__all__ = ["Data", "Images", "InMemory", "batches", "crop_and_flip", "digest", "from_tensors", "load"]

"""Images, arrays and their targets: sources, the cache, and what training sees of it.

`prepare` decodes a source once a machine; `load_training` opens what the search may see; the test part has
a module of its own, `hpo.data.test_set`. A new source is a function and a line in `hpo.data.sources`.
"""

from hpo.data.cache import load_training, prepare
from hpo.data.dataset import ArrayData, DataInfo, ImageData, Split, TrainingData
from hpo.data.images import read_image
from hpo.data.sources import SOURCES

__all__ = [
    "SOURCES",
    "ArrayData",
    "DataInfo",
    "ImageData",
    "Split",
    "TrainingData",
    "load_training",
    "prepare",
    "read_image",
]

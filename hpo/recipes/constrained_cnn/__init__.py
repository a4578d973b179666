"""The recipe of the original: a CNN of two convolutions, kept within bounds, with mixup."""

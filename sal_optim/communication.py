"""The path of :class:`CommunicationLayer` until 0.1; pickles name it."""

from sal_optim.layer import CommunicationLayer, layer_of

__all__ = ["CommunicationLayer", "layer_of"]

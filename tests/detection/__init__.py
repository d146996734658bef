"""The tests of ``sal_optim.detection``."""

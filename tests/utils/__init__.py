"""The tests of ``sal_optim.utils``."""

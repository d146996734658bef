"""The tests of ``sal_optim.monitoring``."""

"""The tests of ``sal_optim.objectives`` and ``sal_optim.monitors``."""

"""The tests of ``sal_optim.importance``."""

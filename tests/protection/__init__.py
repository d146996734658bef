"""The tests of ``sal_optim.protection``."""

"""The tests of ``sal_optim.companions``."""

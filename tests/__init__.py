"""The tests of sal_optim, in its folders; what they share is in ``testing/``."""

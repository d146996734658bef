"""The tests of sal_optim; ``rows.py`` declares what they run on, ``drive.py`` how."""

"""What the tests share: ``rows.py`` declares what they run on, ``drive.py`` how."""

"""Tests with other packages: skipped, with the reason, where one is not installed."""

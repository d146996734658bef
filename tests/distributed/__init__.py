"""Tests with several real processes, which talk over loopback by gloo."""

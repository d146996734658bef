"""The slow, obvious SAL that everything is checked against."""

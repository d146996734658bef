"""A run and many of them: settings, networks, training, records on disk, tuning by studies."""

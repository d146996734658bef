"""What shows and records a run: writers of diagnostics, a live view, a report, pictures.

It reads the protection and never changes it. Files here are imported when they are first asked for.
"""

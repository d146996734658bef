"""What any file of the package may use: checks of arguments, rounding, lazy imports, a canvas.

Files in this folder import nothing else of sal_optim.
"""

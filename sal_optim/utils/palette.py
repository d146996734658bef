"""The colors of all pictures, here and in benchmarks/: told apart by colour-blind readers too.

The colors are those of Okabe and Ito 2008 (Color Universal Design), but for yellow, which is too
light for a line on white.
"""

BLACK, GRAY = "#000000", "#7f7f7f"
ORANGE, SKY, GREEN = "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILLION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"

# From what is held to what is free; they differ in lightness.
SPECTRUM = {"protected": BLUE, "neutral": SKY, "volatile": "#f6e7c1"}
# A run over time.
SIGNAL, LIMIT, MARK, WARNING = BLUE, VERMILLION, GRAY, VERMILLION

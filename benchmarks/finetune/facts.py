"""What a language model is asked: facts and instructions, scored by log-likelihood.

Each has one right continuation and others of the same kind. A question counts as known where the
right one has the largest mean log-likelihood a token. The chance of a guess is one in their number.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A prompt and its continuations; the first is right."""

    prompt: str
    answers: tuple[str, ...]


FACTS = (
    Question("The capital of France is", (" Paris", " Rome", " Madrid", " Berlin")),
    Question("The capital of Japan is", (" Tokyo", " Beijing", " Seoul", " Bangkok")),
    Question("The largest of the planets is", (" Jupiter", " Mars", " Venus", " Earth")),
    Question("Water is made of hydrogen and", (" oxygen", " carbon", " iron", " helium")),
    Question("The opposite of hot is", (" cold", " red", " heavy", " loud")),
    Question("The author of Hamlet is William", (" Shakespeare", " Blake", " Gates", " Bell")),
    Question("A triangle has this many sides:", (" three", " five", " seven", " nine")),
    Question("Plants take in sunlight by", (" photosynthesis", " digestion", " erosion")),
    Question("The heart pumps", (" blood", " air", " food", " bone")),
    Question("The first month of the year is", (" January", " August", " October", " May")),
    Question("The Earth goes around the", (" Sun", " Moon", " Mars", " galaxy")),
    Question("Ice is the solid form of", (" water", " iron", " wood", " sand")),
    Question("The currency of the United States is the", (" dollar", " euro", " yen", " rupee")),
    Question("Bees make", (" honey", " milk", " silk", " cheese")),
    Question("The language spoken in Brazil is", (" Portuguese", " German", " Hindi", " Korean")),
    Question("A baby dog is called a", (" puppy", " kitten", " calf", " foal")),
)
INSTRUCTIONS = (
    Question("Answer with yes or no: is fire hot?", ("Yes", "No")),
    Question("Answer with yes or no: can a stone swim?", ("No", "Yes")),
    Question("Say hello in French.", ("Bonjour", "Tschüss", "Gracias", "import")),
    Question("What is 2 + 2? Answer with a number.", ("4", "5", "7", "22")),
    Question("Name a color.", ("Blue", "Seven", "Running", "def")),
    Question("Write the plural of 'child'.", ("children", "childs", "childes", "parent")),
    Question("Which is larger, an elephant or a mouse?", ("An elephant", "A mouse")),
    Question("Finish the sequence: 1, 2, 3,", ("4", "1", "9", "0")),
)

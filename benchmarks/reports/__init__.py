"""How results are shown: tables, figures, one page of all. Nothing is trained or chosen here."""

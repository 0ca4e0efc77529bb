"""Well-known networks built from their papers, and what vendors publish about their speed."""

"""Students: smaller twins of a module's network, made along routes of shrinking, quantizing and training."""

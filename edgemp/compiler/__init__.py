"""The compiler: enumerates candidates, tries each in a process of its own, picks the fastest that holds."""

"""How long a network would take on a target: operations and bytes of its graph against ceilings."""

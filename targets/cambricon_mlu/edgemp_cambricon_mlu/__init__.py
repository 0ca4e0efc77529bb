"""edgemp backend for Cambricon MLU cards through MagicMind; not run on an MLU."""

"""STAND-IN for Cambricon's magicmind: records every call, and computes with ONNX Runtime. Not MagicMind.

It knows the calls of the public magicmind_cloud samples and nothing else: any other attribute is an error.
`CALLS` lists (name, arguments) in order; a name in `FAILING` answers with a status that is not ok, or None.
`MAGICMIND_STANDIN_DEVICES` is the number of cards it pretends to see.
"""

CALLS = []
FAILING = set()

"""edgemp backend for Rockchip's NPUs, over rknn-toolkit2 here and rknn-toolkit-lite2 on the board."""

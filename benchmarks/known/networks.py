"""Networks of the papers named at each, with random weights: they time and count like trained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.known.builder import Graph


def resnet(depth: int = 50, batch: int = 1, side: int = 224, weights: bool = True) -> Any:
    """ResNet-18 or -50 v1.5 (K. He et al., 2016; stride in the 3x3): ImageNet, 1.8 or 4.1 GMAC."""
    graph = Graph(weights)
    x, width, _ = _resnet_body(graph, graph.input("x", batch, 3, side, side), depth)
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    return graph.model([graph.linear(x, width, 1000)])


def _resnet_body(
    graph: Graph, x: str, depth: int, groups: int = 1, base: int = 64
) -> tuple[str, int, list[tuple[str, int]]]:
    """(last features, their channels, features of all four stages)."""
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    x = graph.conv(x, 3, 64, 7, 2)
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inside, levels = 64, []
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outside = width * (4 if depth == 50 else 1)
        inner = width * groups * base // 64
        for block in range(count):
            stride = 2 if stage and not block else 1
            if depth == 50:
                y = graph.conv(x, inside, inner, 1)
                y = graph.conv(y, inner, inner, 3, stride, groups=groups)
                y = graph.conv(y, inner, outside, 1, act="")
            else:
                y = graph.conv(graph.conv(x, inside, width, 3, stride), width, width, 3, act="")
            if stride > 1 or inside != outside:
                x = graph.conv(x, inside, outside, 1, stride, act="")
            x, inside = graph.node("Relu", graph.node("Add", y, x)), outside
        levels.append((x, outside))
    return x, inside, levels


def mobilenet_v2(batch: int = 1, side: int = 224, weights: bool = True) -> Any:
    """MobileNetV2 1.0 (M. Sandler et al., 2018): 0.30 GMAC at 224 x 224."""
    graph = Graph(weights)
    x = graph.conv(graph.input("x", batch, 3, side, side), 3, 32, 3, 2, act="Relu6")
    inside = 32
    for expand, outside, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            wide = inside * expand
            y = graph.conv(x, inside, wide, 1, act="Relu6") if expand > 1 else x
            step = stride if block == 0 else 1
            y = graph.conv(y, wide, wide, 3, step, groups=wide, act="Relu6")
            y = graph.conv(y, wide, outside, 1, act="")
            x = graph.node("Add", x, y) if step == 1 and inside == outside else y
            inside = outside
    x = graph.node("GlobalAveragePool", graph.conv(x, inside, 1280, 1, act="Relu6"))
    return graph.model([graph.linear(graph.node("Flatten", x), 1280, 1000)])


def unet(side: int = 192, base: int = 32, weights: bool = True) -> Any:
    """A U-Net (O. Ronneberger et al., 2015) of four levels with `base` channels at the top."""
    graph = Graph(weights)
    x, inside, skips = graph.input("x", 1, 3, side, side), 3, []
    for level in range(4):
        width = base << level
        x = graph.conv(graph.conv(x, inside, width), width, width)
        inside = width
        if level < 3:
            skips.append((x, width))
            x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    for skip, width in reversed(skips):
        w = graph.weight(inside, width, 2, 2, fan_in=4 * inside)
        x = graph.node("ConvTranspose", x, w, kernel_shape=[2, 2], strides=[2, 2])
        x = graph.node("Concat", x, skip, axis=1)
        x = graph.conv(graph.conv(x, 2 * width, width), width, width)
        inside = width
    return graph.model([graph.conv(x, inside, 2, 1, act="Sigmoid")])


def unet_3d(side: int = 128, weights: bool = True) -> Any:
    """3D U-Net as in MLPerf's KiTS19 task (F. Isensee et al., 2019): one 128^3 window of a scan."""
    graph = Graph(weights)
    widths = (32, 64, 128, 256, 320, 320)
    x, inside, skips = graph.input("x", 1, 1, side, side, side), 1, []

    def block(x: str, source: int, result: int, stride: int = 1) -> str:
        for channels, step in ((source, stride), (result, 1)):
            x = graph.conv(x, channels, result, 3, step, dims=3, act="")
            scale, bias = (graph.constant(np.full(result, v, np.float32)) for v in (1, 0))
            x = graph.node("Relu", graph.node("InstanceNormalization", x, scale, bias))
        return x

    for level, width in enumerate(widths):
        x = block(x, inside, width, 1 if level == 0 else 2)
        skips.append((x, width))
        inside = width
    for skip, width in reversed(skips[:-1]):
        w = graph.weight(inside, width, 2, 2, 2, fan_in=8 * inside)
        x = graph.node("ConvTranspose", x, w, kernel_shape=[2] * 3, strides=[2] * 3)
        x = block(graph.node("Concat", x, skip, axis=1), 2 * width, width)
        inside = width
    return graph.model([graph.conv(x, inside, 3, 1, dims=3, act="")])


def bert(
    layers: int = 24, width: int = 1024, heads: int = 16, length: int = 384, batch: int = 1,
    weights: bool = True,
) -> Any:  # fmt: skip
    """BERT (J. Devlin et al., 2018): 24 layers of width 1024 are "large", 12 of 768 "base"."""
    graph = Graph(weights)
    tokens = graph.input("tokens", batch, length, integer=True)
    x = graph.node("Gather", graph.weight(30522, width), tokens)
    x = graph.norm(graph.node("Add", x, graph.weight(1, length, width)), width)
    x = graph.encoder(x, layers, length, width, heads, batch=batch)
    return graph.model([graph.linear(x, width, 2)])


def vit(
    layers: int = 12, width: int = 192, heads: int = 3, side: int = 224, patch: int = 16,
    weights: bool = True,
) -> Any:  # fmt: skip
    """ViT (A. Dosovitskiy et al., 2020) without its class token: Ti/16 as it stands."""
    graph = Graph(weights)
    w = graph.weight(width, 3, patch, patch, fan_in=3 * patch**2)
    x = graph.node("Conv", graph.input("x", 1, 3, side, side), w,
                   kernel_shape=[patch] * 2, strides=[patch] * 2)  # fmt: skip
    length = (side // patch) ** 2
    x = graph.node("Transpose", graph.reshape(x, 1, width, length), perm=[0, 2, 1])
    x = graph.node("Add", x, graph.weight(1, length, width))
    x = graph.norm(graph.encoder(x, layers, length, width, heads, pre_norm=True), width)
    return graph.model([graph.node("ReduceMean", x, axes=[1], keepdims=0)])


def yolov5s(side: int = 640, act: str = "Silu", weights: bool = True) -> Any:
    """YOLOv5s v6 (Ultralytics) up to its three heads: 8.2 GMAC at 640 x 640."""
    graph = Graph(weights)

    def conv(x: str, source: int, result: int, window: int = 1, stride: int = 1) -> str:
        return graph.conv(x, source, result, window, stride, act=act)

    def c3(x: str, source: int, result: int, count: int, shortcut: bool = True) -> str:
        half = result // 2
        y = conv(x, source, half)
        for _ in range(count):
            z = conv(conv(y, half, half), half, half, 3)
            y = graph.node("Add", y, z) if shortcut else z
        return conv(graph.node("Concat", y, conv(x, source, half), axis=1), result, result)

    def up(x: str) -> str:
        scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
        return graph.node("Resize", x, "", scales, mode="nearest")

    x = graph.conv(graph.input("x", 1, 3, side, side), 3, 32, 5, 2, act=act)
    x = c3(conv(x, 32, 64, 3, 2), 64, 64, 1)
    p3 = c3(conv(x, 64, 128, 3, 2), 128, 128, 2)
    p4 = c3(conv(p3, 128, 256, 3, 2), 256, 256, 3)
    p5 = conv(c3(conv(p4, 256, 512, 3, 2), 512, 512, 1), 512, 256)
    pooled = [p5]
    for _ in range(3):
        pooled.append(graph.node("MaxPool", pooled[-1], kernel_shape=[5, 5], pads=[2] * 4))
    p5 = conv(conv(graph.node("Concat", *pooled, axis=1), 1024, 512), 512, 256)
    p4 = c3(graph.node("Concat", up(p5), p4, axis=1), 512, 256, 1, False)
    p4 = conv(p4, 256, 128)
    n3 = c3(graph.node("Concat", up(p4), p3, axis=1), 256, 128, 1, False)
    n4 = c3(graph.node("Concat", conv(n3, 128, 128, 3, 2), p4, axis=1), 256, 256, 1, False)
    n5 = c3(graph.node("Concat", conv(n4, 256, 256, 3, 2), p5, axis=1), 512, 512, 1, False)
    heads = ((n3, 128), (n4, 256), (n5, 512))
    return graph.model([graph.conv(n, width, 255, 1, act="") for n, width in heads])


def retinanet(side: int = 800, weights: bool = True) -> Any:
    """RetinaNet with ResNeXt-50 32x4d (MLPerf's detector, 800 x 800, 264 classes, 9 anchors).

    Each level has head weights of its own here, where the original shares them.
    """
    graph = Graph(weights)
    x = graph.input("x", 1, 3, side, side)
    _, _, levels = _resnet_body(graph, x, 50, groups=32, base=4)
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    lateral = [graph.conv(x, width, 256, 1, act="") for x, width in levels[1:]]
    lateral[1] = graph.node("Add", lateral[1], graph.node("Resize", lateral[2], "", scales))
    lateral[0] = graph.node("Add", lateral[0], graph.node("Resize", lateral[1], "", scales))
    pyramid = [graph.conv(x, 256, 256, act="") for x in lateral]
    pyramid.append(graph.conv(levels[3][0], 2048, 256, 3, 2, act=""))
    pyramid.append(graph.conv(graph.node("Relu", pyramid[-1]), 256, 256, 3, 2, act=""))
    outputs = []
    for x in pyramid:
        for wide in (9 * 264, 9 * 4):
            y = x
            for _ in range(4):
                y = graph.conv(y, 256, 256)
            outputs.append(graph.conv(y, 256, wide, act=""))
    return graph.model(outputs)


def speech(frames: int = 400, width: int = 144, weights: bool = True) -> Any:
    """A Conformer encoder (A. Gulati et al., 2020, size S) of four layers over 80 mel bands."""
    graph = Graph(weights)
    x = graph.conv(graph.input("x", 1, 1, frames, 80), 1, width, 3, 2)
    x = graph.conv(x, width, width, 3, 2)
    length = frames // 4
    x = graph.reshape(graph.node("Transpose", x, perm=[0, 2, 1, 3]), 1, length, width * 20)
    x = graph.linear(x, width * 20, width)
    half = graph.constant(np.float32(0.5))
    for _ in range(4):
        for last in (False, True):
            y = graph.linear(graph.norm(x, width), width, 4 * width, "Silu")
            y = graph.node("Mul", graph.linear(y, 4 * width, width), half)
            x = graph.node("Add", x, y)
            if last:
                break
            x = graph.node("Add", x, graph.attention(graph.norm(x, width), 1, length, width, 4))
            y = graph.node("Transpose", graph.norm(x, width), perm=[0, 2, 1])
            y = graph.conv(y, width, 2 * width, 1, act="", dims=1)
            a, b = graph.split(y, 2, 1)
            y = graph.node("Mul", a, graph.node("Sigmoid", b))
            y = graph.conv(y, width, width, 31, groups=width, act="Silu", dims=1)
            y = graph.conv(y, width, width, 1, act="", dims=1)
            x = graph.node("Add", x, graph.node("Transpose", y, perm=[0, 2, 1]))
        x = graph.norm(x, width)
    return graph.model([graph.linear(x, width, 256)])


def lstm(steps: int = 64, width: int = 256, layers: int = 2, weights: bool = True) -> Any:
    """Stacked LSTM layers over `steps` time steps of 80 features, as small speech models have."""
    graph = Graph(weights)
    x, inside = graph.input("x", steps, 1, 80), 80
    for _ in range(layers):
        w = graph.weight(1, 4 * width, inside, fan_in=inside)
        r = graph.weight(1, 4 * width, width, fan_in=width)
        y = graph.node("LSTM", x, w, r, hidden_size=width)
        x, inside = graph.reshape(y, steps, 1, width), width
    return graph.model([graph.linear(x, width, 128)])


Make = Callable[[], Any]

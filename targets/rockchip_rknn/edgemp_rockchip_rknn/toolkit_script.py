"""What runs inside the toolchain: rknn-toolkit2's own calls, on files. Imports nothing of edgemp."""

import os

import numpy as np


def build(model, platform, dataset, hybrid, disabled_rules, rknn_file):
    """Compile an ONNX file to `rknn_file`; `dataset` is the list of calibration files, or "" for fp16."""
    toolkit = _built(model, platform, dataset, hybrid, disabled_rules, verbose=True)
    _done(toolkit.export_rknn(rknn_file), "export_rknn")
    toolkit.release()
    return {"bytes": os.path.getsize(rknn_file)}


def simulate(model, platform, dataset, hybrid, disabled_rules, layouts, feeds, outputs):
    """Build again and run the toolkit's simulator, which takes a build and not an .rknn file.

    `feeds` is an .npz file of arrays called "<index>|<position of the input>", `outputs` the one to write.
    """
    toolkit = _built(model, platform, dataset, hybrid, disabled_rules, verbose=False)
    _done(toolkit.init_runtime(), "init_runtime")
    results = {}
    with np.load(feeds, allow_pickle=False) as given:
        count = 1 + max(int(name.split("|")[0]) for name in given.files)
        for index in range(count):
            arrays = [given[f"{index}|{place}"] for place in range(len(layouts))]
            found = toolkit.inference(inputs=arrays, data_format=list(layouts))
            if found is None:
                raise RuntimeError("inference returned nothing")
            for place, array in enumerate(found):
                results[f"{index}|{place}"] = array
    np.savez(outputs, **results)
    toolkit.release()
    return {"feeds": count}


def _built(model, platform, dataset, hybrid, disabled_rules, verbose):
    from rknn.api import RKNN

    os.chdir(os.path.dirname(model))  # a verbose build leaves files in the working folder
    toolkit = RKNN(verbose=verbose)
    options = {"disable_rules": disabled_rules} if disabled_rules else {}
    _done(toolkit.config(target_platform=platform, **options), "config")
    _done(toolkit.load_onnx(model=model), "load_onnx")
    quantize = {"dataset": dataset, "auto_hybrid": hybrid} if dataset else {}
    _done(toolkit.build(do_quantization=bool(dataset), **quantize), "build")
    return toolkit


def _done(code, step):
    if code != 0:
        raise RuntimeError(f"{step} returned {code}")

"""Times one way to run a network, in a process of its own, so that its peak of memory is its own.

Run as a file, it imports what it times and nothing else:

    python run_export.py '{"way": "onnx", "file": "net.onnx", "size": [1, 3, 896, 896], "threads": 2, "repeats": 5}'

The last line that it prints is JSON: seconds of each run, by the clock and of the processors, and bytes of the process
at its peak.
"""

import json
import resource
import sys
import time


def _onnx(task):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(task["file"], options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def _openvino(task):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": task["threads"], "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.compile_model(task["file"], "CPU", settings)


def _in_torch(load):
    def prepare(task):
        import torch

        torch.set_num_threads(task["threads"])
        run = load(torch, task)

        def call(images):
            with torch.inference_mode():
                return run(torch.from_numpy(images))

        return call

    return prepare


def _eager(torch, task):
    from backbones.defocus import FAMILIES

    torch.manual_seed(0)
    return FAMILIES[task["family"]](**task["settings"]).eval()


WAYS = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _in_torch(lambda torch, task: torch.export.load(task["file"]).module()),
    "aot": _in_torch(lambda torch, task: torch._inductor.aoti_load_package(task["file"])),
    "eager": _in_torch(_eager),
}


def main() -> None:
    """Runs the program."""
    import numpy

    task = json.loads(sys.argv[1])
    images = numpy.random.default_rng(0).standard_normal(task["size"]).astype("float32")
    run = WAYS[task["way"]](task)
    run(images)
    seconds, processor = [], []
    for _ in range(task["repeats"]):
        start, used = time.perf_counter(), time.process_time()
        run(images)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    # Linux counts in KiB.
    print(
        json.dumps(
            dict(seconds=seconds, processor=processor, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        )
    )


if __name__ == "__main__":
    main()

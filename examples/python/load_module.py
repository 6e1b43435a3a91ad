#!/usr/bin/env python3
"""RMSNorm by a program that loads the kernels itself: manifest.json, a fatbin, and the functions of libcuda by ctypes.

    warploom export --out kernels
    python3 load_module.py kernels              # on the first GPU
    python3 load_module.py kernels --dry-run    # without a GPU: prints the launch as JSON

No warploom is needed where it runs, and nothing but Python.
"""

import array
import ctypes
import json
import math
import pathlib
import random
import struct
import sys
from types import SimpleNamespace

ENTRY, ROWS, WIDTH, EPS = "wl_rms_norm_f32", 5, 300, 1e-5


class Kernel:
    """An entry of the manifest."""

    FORMATS = {"u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}
    FUNCTIONS = {
        "__builtins__": {}, "min": min, "max": max, "ceil_div": lambda a, b: -(-a // b),
        "pow2_ceil": lambda a: 1 << (a - 1).bit_length(), "select": lambda c, a, b: a if c else b,
    }

    def __init__(self, manifest, name):
        if manifest["format"] != 1:
            sys.exit(f"this program reads manifests of format 1, not {manifest['format']}")
        self.structs, self.constants = manifest["structs"], manifest["constants"]
        found = ((module, entry) for module in manifest["modules"] for entry in module["entries"] if entry["name"] == name)
        self.module, self.entry = next(found, (None, None))
        if self.entry is None:
            sys.exit(f"the manifest has no entry {name}")

    def pack(self, values, name=None):
        """The bytes of a struct with these fields; what is not named is 0."""
        layout = self.structs[name or self.entry["parameter"]]
        parameter = bytearray(layout["bytes"])
        for field in layout["fields"]:
            value = values.get(field["name"])
            if value is not None:
                items = value if isinstance(value, list) else [value]  # an array of numbers or structs
                packed = b"".join(self.pack(item, field["type"]) if isinstance(item, dict)
                                  else struct.pack("<" + self.FORMATS[field["type"]], item) for item in items)
                parameter[field["offset"]:field["offset"] + len(packed)] = packed
        return bytes(parameter)

    def unpack(self, parameter, name):
        """The fields of a struct, as expressions name them."""
        values = {}
        for field in self.structs[name]["fields"]:
            count = field.get("count", 1)
            each = field["bytes"] // count
            items = []
            for at in range(field["offset"], field["offset"] + field["bytes"], each):
                part = parameter[at:at + each]
                items.append(struct.unpack("<" + self.FORMATS[field["type"]], part)[0] if field["type"] in self.FORMATS
                             else SimpleNamespace(**self.unpack(part, field["type"])))
            values[field["name"]] = items if "count" in field else items[0]
        return values

    def sizes(self, parameter):
        """Grid, block and bytes of dynamic shared memory."""
        launch = self.entry["launch"]
        values = {value["name"]: value["value"] for value in launch["values"]}

        class Names(dict):
            def __missing__(self, name):
                return evaluate(values[name])  # when it is named

        names = Names({**self.constants, **self.unpack(parameter, self.entry["parameter"])})

        def evaluate(expression):
            return int(eval(expression.replace("/", "//"), self.FUNCTIONS, names))

        for required in self.entry["requires"]:
            if not evaluate(required):
                sys.exit(f"{self.entry['name']} requires {required}")
        return ([evaluate(size) for size in launch["grid"]], [evaluate(size) for size in launch["block"]],
                evaluate(launch["dynamic_shared_bytes"]))


class Gpu:
    """The first GPU, by the driver's own functions."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        status = getattr(self.cuda, name)(*arguments)
        if status:
            sys.exit(f"{name} failed with CUresult {status}")

    def upload(self, numbers):
        address = ctypes.c_uint64()
        data = numbers.tobytes()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(len(data)))
        self.call("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        return address.value

    def download(self, address, count):
        data = (ctypes.c_float * count)()
        self.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(4 * count))
        return list(data)

    def launch(self, image, kernel, parameter):
        grid, block, shared = kernel.sizes(parameter)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel.entry["name"].encode())
        if kernel.entry["max_dynamic_shared_bytes"] > 49152:
            # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call("cuFuncSetAttribute", function, 8, kernel.entry["max_dynamic_shared_bytes"])
        parameters = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.c_char_p(parameter), ctypes.c_void_p))
        self.call("cuLaunchKernel", function, *grid, *block, shared, None, parameters, None)
        self.call("cuCtxSynchronize")


class DryRun:
    """Addresses of no device."""

    def __init__(self):
        self.next = 1 << 32

    def upload(self, numbers):
        address = self.next
        self.next += -(-len(numbers) * numbers.itemsize // 256) * 256
        return address


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--dry-run"]):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    kernel = Kernel(manifest, ENTRY)
    device = DryRun() if sys.argv[2:] else Gpu()

    random.seed(1)
    x = array.array("f", (random.uniform(-1, 1) for _ in range(ROWS * WIDTH)))
    weight = array.array("f", (random.uniform(0, 2) for _ in range(WIDTH)))
    y = device.upload(array.array("f", bytes(4 * ROWS * WIDTH)))
    constants = manifest["constants"]
    parameter = kernel.pack({
        "version": constants["WL_VERSION"], "type": constants["WL_F32"], "y_type": constants["WL_F32"],
        "rows": ROWS, "width": WIDTH, "eps": EPS, "x": device.upload(x), "weight": device.upload(weight), "y": y,
        "x_stride": WIDTH, "y_stride": WIDTH,
    })
    if isinstance(device, DryRun):
        grid, block, shared = kernel.sizes(parameter)
        print(json.dumps({"entry": ENTRY, "fatbin": kernel.module["fatbin"], "grid": grid, "block": block,
                          "shared_bytes": shared, "parameter": parameter.hex()}))
        return

    device.launch((folder / kernel.module["fatbin"]).read_bytes(), kernel, parameter)
    out, worst = device.download(y, ROWS * WIDTH), 0.0
    for row in range(ROWS):
        values = x[row * WIDTH:(row + 1) * WIDTH]
        scale = 1 / math.sqrt(sum(value * value for value in values) / WIDTH + EPS)
        worst = max(worst, max(abs(w * value * scale - out[row * WIDTH + i]) for i, (value, w) in enumerate(zip(values, weight))))
    print(f"{ENTRY}: {ROWS} rows of {WIDTH}, off by {worst:.7f} at most")
    sys.exit(int(worst > 1e-5))


main()

#!/usr/bin/env python3
"""Paged decode attention from Python, by ctypes alone: numpy arrays on the simulator, torch tensors on a GPU.

    python3 paged_attention.py            # on the simulator; needs numpy
    python3 paged_attention.py cuda:0     # on a GPU; needs torch

The library is looked for as the system does, or taken from WARPLOOM_LIBRARY.
"""

import ctypes
import ctypes.util
import math
import os
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p

VERSION = 1
BF16 = 0
CAUSAL = 0


class View(Structure):
    _fields_ = [("address", c_uint64), ("bytes", c_uint64)]


class Matrix(Structure):
    _fields_ = [("view", View), ("stride", c_uint64)]


class PageLayout(Structure):
    _fields_ = [(name, c_uint64) for name in
                ("pages", "page_size", "kv_heads", "head_dim", "page_stride", "head_stride", "slot_stride")]


class PageTable(Structure):
    _fields_ = [("view", View), ("sequences", c_uint64), ("stride", c_uint64)]


class Mask(Structure):
    _fields_ = [("pattern", c_uint32), ("keys", c_int32), ("prefix", c_int32), ("reserved", c_int32)]


class AttentionDecodeArgs(Structure):
    """As WlAttentionDecodeArgs in warploom.h, field by field."""

    _fields_ = [
        ("version", c_uint32), ("dtype", c_uint32),
        ("tokens", c_uint64), ("sequences", c_uint64), ("heads", c_uint64), ("max_rows", c_uint64), ("max_keys", c_uint64),
        ("scale", c_float), ("softcap", c_float),
        ("q", Matrix), ("out", Matrix), ("lse", View),
        ("layout", PageLayout), ("k", View), ("v", View), ("table", PageTable),
        ("slots", View), ("lengths", View), ("offsets", View), ("positions", View), ("documents", View), ("tree", View),
        ("sinks", View), ("mask", Mask), ("scratch", View),
    ]


class Library:
    """The functions that are used here; a status other than 0 is an exception with the library's words."""

    def __init__(self):
        name = os.environ.get("WARPLOOM_LIBRARY") or ctypes.util.find_library("warploom")
        if not name:
            sys.exit("there is no libwarploom: install it with cargo cinstall, or set WARPLOOM_LIBRARY to its path")
        self.library = ctypes.CDLL(name)
        self.library.wl_error.restype = c_char_p
        if self.library.wl_version() != VERSION:
            sys.exit(f"{name} is of another version than this program")

    def __getattr__(self, name):
        function = getattr(self.library, name)

        def call(*arguments):
            if function(*arguments):
                raise RuntimeError(self.library.wl_error().decode())

        return call


def on_simulator(library, device, stream):
    """Random numbers in numpy, and how they get to the device and back."""
    import numpy

    generator = numpy.random.default_rng(1)

    def to_device(array):
        view = View()
        library.wl_allocate(device, c_uint64(array.nbytes), byref(view))
        library.wl_upload(stream, view, array.ctypes.data_as(c_void_p))
        return view

    def random(*shape):
        values = generator.uniform(-1, 1, shape).astype(numpy.float32).view(numpy.uint32)
        halves = (values >> 16).astype(numpy.uint16)
        return to_device(halves), (halves.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)

    def integers(values):
        return to_device(numpy.array(values, numpy.int32))

    def empty(*shape):
        view = View()
        library.wl_allocate(device, c_uint64(2 * math.prod(shape)), byref(view))

        def read():
            halves = numpy.empty(shape, numpy.uint16)
            library.wl_download(stream, halves.ctypes.data_as(c_void_p), view)
            return (halves.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)

        return view, read

    return random, integers, empty


def on_gpu(library, device, stream):
    """Random numbers in torch tensors, which stay where they are."""
    import torch

    kept = []

    def view(tensor):
        kept.append(tensor)
        return View(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def random(*shape):
        tensor = torch.rand(shape, device="cuda").mul_(2).sub_(1).to(torch.bfloat16)
        return view(tensor), tensor.double().cpu().numpy()

    def integers(values):
        return view(torch.tensor(values, dtype=torch.int32, device="cuda"))

    def empty(*shape):
        tensor = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        return view(tensor), lambda: tensor.double().cpu().numpy()

    return random, integers, empty


def main():
    import numpy

    name = sys.argv[1] if len(sys.argv) > 1 else "sim"
    library = Library()
    device, stream = c_void_p(), c_void_p()
    library.wl_device_open(name.encode(), byref(device))
    if name == "sim":
        library.wl_stream_create(device, byref(stream))
        random, integers, empty = on_simulator(library, device, stream)
    else:
        import torch

        torch.cuda.set_device(int(name.partition(":")[2] or 0))
        library.wl_stream_of_cuda(device, c_void_p(torch.cuda.current_stream().cuda_stream), byref(stream))
        random, integers, empty = on_gpu(library, device, stream)

    heads, kv_heads, head_dim, page, pages = 4, 2, 64, 16, 6
    lengths, table = [20, 37], [[4, 1, -1], [0, 5, 2]]
    q_view, q = random(2, heads, head_dim)
    k_view, k = random(pages, kv_heads, page, head_dim)
    v_view, v = random(pages, kv_heads, page, head_dim)
    out_view, read = empty(2, heads, head_dim)
    scale = 1 / math.sqrt(head_dim)
    args = AttentionDecodeArgs(
        version=VERSION, dtype=BF16, tokens=2, sequences=2, heads=heads, max_rows=1, max_keys=3 * page, scale=scale,
        q=Matrix(q_view, heads * head_dim), out=Matrix(out_view, heads * head_dim),
        layout=PageLayout(pages, page, kv_heads, head_dim, kv_heads * page * head_dim, page * head_dim, head_dim),
        k=k_view, v=v_view, table=PageTable(integers(table), 2, 3),
        lengths=integers(lengths), offsets=integers([0, 1, 2]), mask=Mask(CAUSAL, 0, 0, 0),
    )
    scratch = c_uint64()
    library.wl_attention_decode_scratch(stream, byref(args), byref(scratch))
    if scratch.value:
        library.wl_allocate(device, scratch, byref(args.scratch))
    library.wl_attention_decode(stream, byref(args))
    library.wl_stream_synchronize(stream)
    out = read()

    worst = 0.0
    for s, length in enumerate(lengths):
        ids = table[s][: -(-length // page)]
        for head in range(heads):
            kv = head * kv_heads // heads
            keys = numpy.concatenate([k[i, kv] for i in ids])[:length]
            values = numpy.concatenate([v[i, kv] for i in ids])[:length]
            weights = numpy.exp(scale * keys @ q[s, head])
            worst = max(worst, abs(weights @ values / weights.sum() - out[s, head]).max())
    print(f"{name}: {heads} heads of {len(lengths)} sequences, off by {worst:.4f} at most")
    library.wl_stream_destroy(stream)
    library.wl_device_close(device)
    sys.exit(int(worst > 0.01))


main()

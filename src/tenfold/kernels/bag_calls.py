"""Arguments of the compiled weighted bag of rows (bag.cpp) as ctypes structures; bag.cpp says what each field is."""

from __future__ import annotations

import ctypes

from tenfold.kernels.structures import CStructure

_P, _N, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class BagCall(CStructure):
    """bag_f32, bag_bf16, dots_f32, dots_bf16."""

    _fields_ = [
        *(("table", _P), ("k", _N), ("d", _N), ("index", _P), ("other", _P)),
        *(("t", _N), ("b", _N), ("out", _P), ("threads", _N)),
    ]


class GroupCall(CStructure):
    """group_rows."""

    _fields_ = [("index", _P), ("n", _N), ("k", _N), ("order", _P), ("ids", _P), ("starts", _P)]


class GradientCall(CStructure):
    """bag_gradients_f32."""

    _fields_ = [
        *(("table", _P), ("d", _N), ("order", _P), ("ids", _P), ("starts", _P), ("u", _N), ("b", _N)),
        *(("weight", _P), ("source", _P), ("rows", _P), ("dots", _P), ("threads", _N)),
    ]


class RowStepCall(CStructure):
    """row_adamw_f32."""

    _fields_ = [
        *(("parameter", _P), ("exp_avg", _P), ("exp_avg_sq", _P), ("count", _P), ("d", _N), ("ids", _P)),
        *(("grad", _P), ("u", _N), ("lr", _D), ("beta1", _D), ("beta2", _D), ("eps", _D), ("decay", _D)),
        ("threads", _N),
    ]


STRUCTURES = (BagCall, GroupCall, GradientCall, RowStepCall)

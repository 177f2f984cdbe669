"""Fitted classifiers as programs that run without this package: torch.export and ONNX."""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imbmargin.checkpoint import write_file
from imbmargin.data.inputs import Layout
from imbmargin.estimator import MaxMarginClassifier

__all__ = ["export_model"]

_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
_INPUT = "X"
_OUTPUTS = ["probability", "logits"]
# Of more than one row, so that the number of rows is not taken for a constant.
_EXAMPLE_ROWS = 4
# Without a bound torch 2.6 does not take the number of rows for free.
_MOST_ROWS = 2**31 - 1


class _Program(nn.Module):
    """From rows of X, as predict takes them, to probabilities and logits."""

    def __init__(self, network: nn.Module, layout: Layout, scale: float) -> None:
        super().__init__()
        self.network = network
        self.kind, self.shape, self.sample_shape = layout.kind, layout.shape, layout.sample_shape
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.float()
        if self.kind == "nhwc":
            x = x.permute(0, 3, 1, 2)
        elif self.kind == "flat":
            x = x.reshape(-1, *self.shape)
        output = self.network(x)
        logits = output[0] if isinstance(output, tuple) else output
        return torch.softmax(self.scale * logits, dim=1), logits


def export_model(
    model: MaxMarginClassifier, path: str | os.PathLike[str], *, dtype: str = "float32"
) -> None:
    """Export a fitted classifier as a program: ``.pt2`` of torch.export, or ``.onnx``.

    The program takes X as ``predict`` does, with any number of rows, and returns two arrays:
    "probability" (n, K), as ``predict_proba``, and "logits" (n, K). Standardising, the layout of
    images and the scale of the loss are inside. Columns are in the order of ``classes_``, which is
    in the file too, as JSON: ``extra_files={"classes": ""}`` of ``torch.export.load``, and
    "classes" in the metadata of ONNX.

    Parameters
    ----------
    model : MaxMarginClassifier
        A fitted one. Of a two-stage classifier export ``net_``.
    path : str or Path
        Ends with ".pt2", or with ".onnx", which needs ``pip install "imbmargin[onnx]"``.
    dtype : {"float32", "uint8"}, default="float32"
        Type of X. Values have the same unit in both: 0..255 stay what they are.

    Raises
    ------
    TypeError
        If the model is of another class.
    ValueError
        If the path ends otherwise, ``dtype`` is unknown, ``predict_nonlinearity`` is set, or the
        rows that the model was fitted on are no arrays.
    NotFittedError
        If the model is not fitted.
    ImportError
        If ONNX is asked for and not installed.

    Notes
    -----
    Arithmetic is float32, also where ``precision`` is not; then probabilities differ as much as
    the precisions do.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, export_model
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = MaxMarginClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.pt2")
    ...     export_model(clf, path)
    ...     program = torch.export.load(path).module()
    >>> probability, logits = program(torch.tensor(X[:2], dtype=torch.float32))
    >>> bool(abs(probability.detach().numpy() - clf.predict_proba(X[:2])).max() < 1e-5)
    True
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"path must end with '.pt2' or '.onnx', got {str(path)!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {list(_DTYPES)}, got {dtype!r}")
    program = _program_of(model)
    example = torch.zeros(_EXAMPLE_ROWS, *program.sample_shape, dtype=_DTYPES[dtype])
    classes = json.dumps(model.classes_.tolist(), default=str)
    write = _torch_content if path.suffix == ".pt2" else _onnx_content
    write_file(path, write(program, example, classes))


def _program_of(model: Any) -> _Program:
    if not isinstance(model, MaxMarginClassifier):
        raise TypeError(
            f"export_model takes a fitted MaxMarginClassifier, got a {type(model).__name__}; its "
            "network standardises columns itself, so that no scaler is needed before it. Of a "
            "two-stage classifier export net_"
        )
    model.check_is_fitted()
    if model.predict_nonlinearity != "auto":
        raise ValueError(
            f"predict_nonlinearity={model.predict_nonlinearity!r} is not exported; set it to 'auto'"
        )
    layout = getattr(model, "layout_", None)
    if layout is None:
        raise ValueError(
            "the model was not fitted on arrays, so that the shape of its samples is not known; "
            "export module_ with torch.export"
        )
    network = copy.deepcopy(getattr(model.module_, "_orig_mod", model.module_))
    # The exporters do not know weights of other memory formats.
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return _Program(network, layout, model.logit_scale_).requires_grad_(False).eval()


def _rows() -> Any:
    return ({0: torch.export.Dim("rows", max=_MOST_ROWS)},)


def _torch_content(program: _Program, example: Tensor, classes: str) -> bytes:
    exported = torch.export.export(program, (example,), dynamic_shapes=_rows())
    content = io.BytesIO()
    torch.export.save(exported, content, extra_files={"classes": classes})
    return content.getvalue()


def _onnx_content(program: _Program, example: Tensor, classes: str) -> bytes:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'an .onnx file needs the packages onnx and onnxscript: pip install "imbmargin[onnx]"'
        ) from error
    exported: Any = torch.onnx.export(
        program,
        (example,),
        dynamo=True,
        dynamic_shapes=_rows(),
        input_names=[_INPUT],
        output_names=_OUTPUTS,
        verbose=False,
    )
    exported.model.metadata_props["classes"] = classes
    return bytes(exported.model_proto.SerializeToString())

"""From constructor arguments to parts: device, precision, module, loss and optimizer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from skorch.callbacks import InputShapeSetter, LRScheduler
from skorch.utils import to_device
from torch import nn

from imbmargin._hardware import has_fast_bfloat16
from imbmargin.data.inputs import Layout
from imbmargin.losses import LOSSES
from imbmargin.losses._base import ClassCountLoss
from imbmargin.modules import MODULES, replace_head

__all__ = [
    "adapt_module",
    "check_arguments",
    "check_module",
    "check_row_weights",
    "check_sizes",
    "default_schedule",
    "find_backbone",
    "fused_step",
    "is_sized",
    "let_weight_come_and_go",
    "load_backbone",
    "loss_arguments",
    "module_arguments",
    "resolve_device",
    "resolve_loss",
    "resolve_module",
    "resolve_optimizer",
    "resolve_precision",
]

_SIZES = ("num_classes", "in_features", "in_channels")
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: Any) -> Any:
    """Return the device that "auto" stands for: CUDA where there is one, else the CPU.

    Raises
    ------
    ValueError
        If the device is unknown, or a CUDA device that this machine does not have.
    """
    if device == "auto":
        return _auto_device()
    if device is None or device == "cpu" or isinstance(device, torch.device):
        return device
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {device!r}"
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "pass device='cpu' or device='auto'"
        )
    return device


@cache
def _auto_device() -> str:
    # Asked for with every batch, and the answer costs a call of the driver.
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: str, device: Any, images: bool = False) -> torch.dtype | None:
    """Return the autocast type of a precision, or None for float32.

    "auto" is bfloat16 where it is faster: on CUDA devices that have it, and for images on some
    CPUs.

    Raises
    ------
    ValueError
        If the precision is unknown, or float16 on a device other than CUDA.
    """
    # Asked for with every batch.
    if precision in ("float32", "bfloat16"):
        return _PRECISIONS[precision]
    on_cuda = torch.device(device or "cpu").type == "cuda"
    if precision == "auto":
        faster = torch.cuda.is_bf16_supported() if on_cuda else images and has_fast_bfloat16()
        return torch.bfloat16 if faster else None
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {[*_PRECISIONS, 'auto']}, got {precision!r}")
    if precision == "float16" and not on_cuda:
        raise ValueError(
            f"precision='float16' needs a CUDA device, got device={device!r}; "
            "use 'bfloat16' or 'float32'"
        )
    return _PRECISIONS[precision]


def resolve_loss(loss: Any) -> Any:
    """Return the class (or other callable) that makes the loss.

    Raises
    ------
    ValueError
        If a name is unknown, or the loss takes something else than logits.
    """
    if isinstance(loss, nn.NLLLoss) or (isinstance(loss, type) and issubclass(loss, nn.NLLLoss)):
        raise ValueError(
            f"loss={loss!r} takes logarithms of probabilities, but networks give logits here; pass "
            "loss='cross_entropy' or torch.nn.CrossEntropyLoss, and a module without softmax"
        )
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]
    if isinstance(loss, nn.Module) or callable(loss):
        return loss
    raise ValueError(f"loss must be one of {sorted(LOSSES)} or a Module class, got {loss!r}")


def resolve_module(module: Any, layout: Layout | None) -> Any:
    """Return the class, or the instance, that "auto" or a name stands for.

    Raises
    ------
    ValueError
        If a name is unknown, or a network for images is asked for rows of a table.
    """
    if isinstance(module, str) and module == "auto":
        module = "mlp" if layout is None or layout.image_shape is None else "resnet32"
    if isinstance(module, str) and module in MODULES:
        found = MODULES[module]
        images = "in_channels" in inspect.signature(found).parameters
        if images and layout is not None and layout.image_shape is None:
            raise ValueError(
                f"module={module!r} takes images, but X has rows of {layout.shape[0]} columns; "
                "pass image_shape=(channels, height, width) for flattened images, or module='mlp'"
            )
        return found
    if isinstance(module, nn.Module) or callable(module):
        return module
    raise ValueError(
        f"module must be one of {['auto', *sorted(MODULES)]}, a Module class or an instance, "
        f"got {module!r}"
    )


def module_arguments(
    module: Callable[..., nn.Module], layout: Layout | None, num_classes: int | None, loss: Any
) -> dict[str, Any]:
    """Return the sizes that come from the data, as far as the module's constructor takes them."""
    known: dict[str, Any] = {}
    if num_classes is not None:
        known["num_classes"] = num_classes
    if layout is not None:
        known["in_features"] = torch.Size(layout.shape).numel()
        if layout.image_shape is not None:
            known["in_channels"] = layout.shape[0]
    if module in MODULES.values():
        known["head"] = getattr(loss, "head", "linear")
    accepted = inspect.signature(module).parameters
    return {name: value for name, value in known.items() if name in accepted}


def check_sizes(module: Callable[..., nn.Module], arguments: dict[str, Any]) -> None:
    """Check that the sizes which a module's constructor needs are there.

    Raises
    ------
    TypeError
        If one is missing: before fit, or for a torch Dataset whose rows are no arrays.
    """
    needed = {
        name: p.default is p.empty for name, p in inspect.signature(module).parameters.items()
    }
    missing = [name for name in _SIZES if needed.get(name) and name not in arguments]
    if missing:
        raise TypeError(
            f"module {getattr(module, '__name__', module)!r} needs {', '.join(missing)}, which "
            "are found in the data when it is fitted: call fit, or pass "
            f"{', '.join(f'module__{name}=...' for name in missing)}"
        )


def adapt_module(module: nn.Module, num_classes: int | None) -> nn.Module:
    """Return a copy of a user's module: its weights stay, a head of another size is replaced."""
    module = copy.deepcopy(module)
    head = getattr(module, "head", None)
    size = getattr(head, "out_features", num_classes)
    if num_classes is not None and size != num_classes:
        replace_head(module, num_classes)
    return module


def find_backbone(module: nn.Module) -> nn.Module:
    """Return the part of a network that ``init_backbone`` sets.

    Raises
    ------
    ValueError
        If it has none.
    """
    backbone = getattr(module, "backbone", None)
    if isinstance(backbone, nn.Module):
        return backbone
    raise ValueError(
        f"init_backbone needs a module with an attribute `backbone`, {type(module).__name__} has "
        "none"
    )


def load_backbone(module: nn.Module, source: Any) -> None:
    """Copy weights and buffers into a network's backbone; its head stays as it is.

    Parameters
    ----------
    module : Module
        A network with an attribute ``backbone``.
    source : Module or fitted estimator
        A backbone, a network that has one, a classifier, or a pre-trainer with ``backbone_``.

    Raises
    ------
    TypeError
        If the source holds no network.
    ValueError
        If the network has no backbone, or they differ.
    """
    found = getattr(source, "backbone_", None)
    if found is None:
        network = getattr(source, "module_", source)
        found = getattr(network, "backbone", network)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"init_backbone must be a Module, a fitted classifier or a pre-trainer, got {source!r}"
        )
    backbone = find_backbone(module)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
        for part in (found, backbone)
    ]
    wrong = [n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)]
    if wrong:
        given, own = (part.get(wrong[0], "missing") for part in shapes)
        raise ValueError(
            f"init_backbone does not fit the network: {wrong[0]} is {given} there and {own} in "
            f"{type(module).__name__}; pre-train the same module on images of the same channels"
        )
    backbone.load_state_dict(found.state_dict())


def check_module(module: nn.Module, layout: Layout, num_classes: int, device: Any) -> None:
    """Run a module once where it will train, which also sizes lazy layers, and check its output.

    Raises
    ------
    ValueError
        If it does not take samples of this shape, or returns another number of columns.
    """
    if len({p.device for p in module.parameters()}) > 1:
        # A part of it is a trained network, which is on its device already.
        to_device(module, device)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    was_training = module.training
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, *layout.shape, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"module {type(module).__name__} does not take samples of shape {layout.shape}: {error}"
        ) from error
    except TypeError:
        # Its forward has further required arguments, which come as fit parameters.
        return
    finally:
        module.train(was_training)
    logits = output[0] if isinstance(output, tuple) else output
    if tuple(logits.shape) != (2, num_classes):
        raise ValueError(
            f"module {type(module).__name__} must return one logit for each of the {num_classes} "
            f"classes, shape (n, {num_classes}), but for 2 samples it returned shape "
            f"{tuple(logits.shape)}; pass the class with an argument `num_classes`, or give it "
            "an attribute `head` that can be replaced"
        )


def loss_arguments(loss: Any, own: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return the estimator's own arguments (delta_neg, beta) that this loss takes, and its scale.

    The papers' scale belongs to cosine logits; with another head the logits have their own.
    """
    if not (isinstance(loss, type) and issubclass(loss, ClassCountLoss)):
        return {}
    accepted = inspect.signature(loss).parameters
    known = dict(own)
    if not getattr(getattr(module, "head", None), "normalized", False):
        known["scale"] = 1.0
    return {name: value for name, value in known.items() if name in accepted}


def let_weight_come_and_go(loss: Any) -> None:
    """Let one of torch's losses load a state with class weights, or without, whatever it has."""
    if "weight" in getattr(loss, "_buffers", {}) and not hasattr(loss, "set_class_weight"):
        loss.register_load_state_dict_pre_hook(_follow_weight)


def _follow_weight(loss: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.get(f"{prefix}weight")
    loss.weight = None if weight is None else torch.empty_like(weight)


def check_row_weights(loss: Any, cause: str) -> None:
    """Raise an error for a loss that takes no weights of rows, which the cause needs.

    Raises
    ------
    ValueError
        If its ``forward`` does not take logits, targets and weights.
    """
    forward = getattr(getattr(loss, "func", loss), "forward", None)
    if forward is None:
        return
    try:
        inspect.signature(forward).bind(*[None] * (4 if inspect.isfunction(forward) else 3))
    except TypeError as error:
        raise ValueError(
            f"{cause} needs a loss that takes weights of rows, forward(logits, target, weight), "
            f"got loss={loss!r}; pass a name, or a subclass of imbmargin.losses.ClassCountLoss"
        ) from error


def check_arguments(prefix: str, part: Any, given: Iterable[str]) -> None:
    """Check that the constructor of a part takes the arguments that are given for it.

    Raises
    ------
    TypeError
        If it does not.
    """
    made = type(part) if isinstance(part, nn.Module) else part
    try:
        parameters = inspect.signature(made).parameters
    except ValueError:  # what is built in does not always tell
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            raise TypeError(
                f"{prefix}__{name} is no argument of {getattr(made, '__name__', made)}, which "
                f"takes {', '.join(parameters) or 'none'}; take it away, or correct its name"
            )


def resolve_optimizer(optimizer: Any, layout: Layout | None) -> tuple[Any, dict[str, Any]]:
    """Return the class of an optimizer, and the arguments that come with "auto".

    Images: the protocol of the LDAM and MM papers. Tables: AdamW, which needs no tuning of the
    rate to the scale of the problem, with a decay that was best on half of the benchmark's tables.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if callable(optimizer):
        return optimizer, {}
    if optimizer != "auto":
        raise ValueError(
            "optimizer must be 'auto' or a class such as torch.optim.AdamW, whose arguments are "
            f"optimizer__*, got {optimizer!r}"
        )
    if layout is not None and layout.image_shape is not None:
        return torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}
    return torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.1}


def default_schedule(layout: Layout | None, callbacks: Any) -> str | None:
    """Return the schedule of "auto": the papers' for images, a constant rate for tables.

    None too where a user's callbacks bring one.

    The papers' rate falls a hundredfold when re-weighting switches on; with Adam on a table of a
    few batches the weights could then no longer change anything.
    """
    of_images = layout is not None and layout.image_shape is not None
    return "step" if of_images and not _bring(callbacks, LRScheduler) else None


def is_sized(module: Any, callbacks: Any) -> bool:
    """Tell whether a user's own module has its sizes as soon as it is made.

    With skorch's InputShapeSetter they come when training begins.
    """
    return module not in MODULES.values() and not _bring(callbacks, InputShapeSetter)


def _bring(callbacks: Any, kind: type) -> bool:
    """Tell whether callbacks hold one of a kind, as an instance or as the class."""
    if not isinstance(callbacks, (list, tuple)):
        return False
    found = [item[1] if isinstance(item, (list, tuple)) else item for item in callbacks]
    return any(cb is kind or isinstance(cb, kind) for cb in found)


def fused_step(optimizer: Any, given: dict[str, Any], module: nn.Module) -> dict[str, bool]:
    """Return the argument that makes a step one operation for all parameters, where there is one.

    torch's default is a Python loop over the parameters (on the CPU), which on tables costs as much
    as the network.
    """
    chosen = given.keys() & {"fused", "foreach", "differentiable"}
    if chosen or optimizer not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return {}
    sparse = any(getattr(layer, "sparse", False) for layer in module.modules())
    known = {"cpu", "cuda"}
    fits = all(p.is_floating_point() and p.device.type in known for p in module.parameters())
    return {"fused": True} if fits and not sparse else {}

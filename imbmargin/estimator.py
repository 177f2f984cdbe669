"""The estimator: a skorch classifier that keeps scikit-learn's contract."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EpochScoring, EpochTimer, PassthroughScoring
from torch.utils.data import DataLoader

from imbmargin.callbacks import (
    DeferredLoss,
    DeferredResampling,
    DeferredReweighting,
    LearningRateSchedule,
    PrintLog,
    resolve_epoch,
    resolve_scheme,
)
from imbmargin.data.augment import make_augment
from imbmargin.data.batches import ArrayBatches, ArrayDataset, is_array_dataset, targets_of
from imbmargin.data.mixing import make_mixing
from imbmargin.data.split import StratifiedSplit
from imbmargin.metrics import balanced_accuracy
from imbmargin.parts import (
    adapt_module,
    check_arguments,
    check_module,
    check_row_weights,
    check_sizes,
    default_schedule,
    fused_step,
    is_sized,
    let_weight_come_and_go,
    load_backbone,
    loss_arguments,
    module_arguments,
    resolve_loss,
    resolve_module,
    resolve_optimizer,
    resolve_precision,
)
from imbmargin.randomness import isolated_random_state
from imbmargin.samplers import ClassSampler
from imbmargin.steps import BatchSteps
from imbmargin.weights import class_counts, class_rates, class_weights

__all__ = ["MaxMarginClassifier"]

# Rows of a torch Dataset from which the input statistics are learned: decoding is what it costs.
_ALL_ROWS = ("batch_size", -1)


def _balanced_accuracy_scorer(net: Any, X: Any, y: Any) -> float:
    # skorch has no y of a Dataset whose predictions are not cached.
    return balanced_accuracy(targets_of(X) if y is None else y, net.predict(X))


class MaxMarginClassifier(BatchSteps):
    """Neural network classifier for imbalanced data, with maximum-margin loss and deferral.

    A method is five independent choices: the loss, the class weights, the sampling, from which
    epoch each applies, and the head of the network. Every row of the paper's table is such a
    choice (`imbmargin.make_classifier`). It is a scikit-learn classifier and a
    `skorch.NeuralNetClassifier` at once.

    Parameters
    ----------
    module : str, Module class or instance, default="auto"
        The network. "auto" is an MLP for rows of a table and a ResNet-32 for images; a name is a
        key of `imbmargin.modules.MODULES`. ``module__*`` reaches its constructor; the arguments
        ``num_classes``, ``in_features`` and ``in_channels`` are filled in from the data where the
        constructor takes them. Of an instance a copy is trained, which starts from its weights;
        an attribute ``head`` with another number of outputs is replaced.
    loss : str, Module class or instance, default="mm"
        A key of `imbmargin.losses.LOSSES`, or a class. ``criterion__*`` reaches its constructor. Of
        an instance a copy is used, as it is: ``delta_neg`` and ``beta`` do not reach it.
    loss_epoch : int, float or None, default=None
        Epochs completed before the loss takes the place of plain cross-entropy, as ``drw_epoch``.
    delta_neg : float, default=0.6
        δ⁻ of the losses "mm" and "mm_ldam": larger means a smaller margin.
    beta : float, default=1.5
        β of the losses "mm" and "mm_ldam": δ⁺ = β δ⁻.
    class_weight : {"inverse", "balanced", "effective_number"}, dict, callable or None, \
default=None
        Weights of the classes in the loss, from the class counts of the training part: a scheme,
        a dict by label, or a function of the counts. With ``drw_epoch`` set, None means
        "effective_number" (β = 0.9999), as in the paper.
    drw_epoch : int, float or None, default=None
        Deferred re-weighting: epochs completed before the class weights switch on. A float is a
        fraction of ``max_epochs``. None: from the start, if ``class_weight`` is given.
    resample : {"class_balanced", "square_root", "progressive", "effective_number"}, dict, \
callable or None, default=None
        Rates at which classes are drawn in an epoch: a scheme, a dict of relative rates by label,
        or a function of the counts. With ``drs_epoch`` set, None means "effective_number".
    drs_epoch : int, float or None, default=None
        Deferred re-sampling: epochs completed before the rates switch on.
    augment : str, callable, list of these, or None, default="auto"
        Augmentation of training images, a whole batch at once. "auto": crop and flip for colour
        images, crop for others, nothing for tables. "strong": that, AutoAugment and Cutout, for
        images of type uint8. For single steps see `imbmargin.data.augment.make_augment`. A
        callable gets a batch (n, C, H, W).
    mixing : {"mixup", "remix"}, callable or None, default=None
        Mixing of training rows after their augmentation, see `imbmargin.data.mixing`. The loss of
        a mixed row is the weighted mean of its losses for the two labels, each with the margin
        and the class weight of its own label.
    image_shape : tuple of int, default=None
        (channels, height, width) of images that come flattened to rows, so that 2-D tools can
        stand before the network, or whose channel axis is ambiguous.
    init_backbone : Module, estimator or None, default=None
        Where ``module_.backbone`` starts from: a network, a fitted classifier, or a pre-trainer
        such as `imbmargin.pretraining.RotationPretrainer`, which is fitted on the training part
        first unless it is fitted already (`sklearn.frozen.FrozenEstimator` keeps it so in copies).
        The head starts anew, and nothing is frozen.
    optimizer : torch optimizer class or "auto", default="auto"
        "auto": SGD with momentum 0.9 and weight decay 2e-4 for images (the paper's), AdamW
        with 0.1 for tables. ``optimizer__*`` reaches its constructor.
    lr : float or "auto", default="auto"
        Initial learning rate. "auto": 0.1 for images, 2e-3 for tables, and its own default for an
        optimizer that you choose.
    lr_schedule : {"auto", "step", "early_step", "half_step", "tenth_step", "cosine"}, \
callable or None, default="auto"
        Factor of the learning rate by epoch, see `imbmargin.callbacks.LearningRateSchedule`.
        "auto": "step", the paper's, for images and a constant rate for tables, unless
        ``callbacks`` brings a skorch LRScheduler.
    max_epochs : int, default=200
        Passes over the training part.
    batch_size : int, default=128
        Rows of a batch; -1 takes all.
    ema_decay : float, default=None
        Predict with an exponential moving average of the weights, see
        `imbmargin.modules.WeightAverage`: 0.999, or more for long trainings. None: the last ones.
    precision : {"float32", "bfloat16", "float16", "auto"}, default="float32"
        Type of the network's arithmetic (autocast); the package's heads and losses stay in
        float32. "float16" needs CUDA. "auto": bfloat16 on CUDA devices that have it, and for
        images on CPUs that are faster in it (AMX, or AMD's AVX-512 bf16); else float32.
    checkpoint_dir : str or Path, default=None
        Folder in which ``fit`` keeps the state of the run after every epoch. The same fit, in this
        or another process, goes on from there to the same result, bit for bit on the CPU; once it
        is done, it is read and not trained again. One folder for each run; ``{run}`` in the path
        becomes a name of the configuration and the data, so that all runs of a search or a
        cross-validation have theirs. Ctrl-C and SIGTERM act after the batch that is running.
    device : str, default="auto"
        "auto": CUDA where there is one, else the CPU. None, as in skorch: nothing is moved.
    train_split : float, callable or None, default=None
        Validation part: a fraction of each class, or a skorch split such as
        `skorch.helper.predefined_split`, with labels as those of y. None: all rows train.
    warm_start : bool, default=False
        Whether fit goes on from the weights that are there.
    verbose : int, default=0
        1 prints a line each epoch.
    random_state : int, RandomState or None, default=None
        Seed of weights, sampling, augmentation and split. The same int gives the same result, bit
        for bit on the CPU. The global random states are left as they were.
    callbacks : list, default=None
        skorch callbacks, such as `imbmargin.callbacks.EarlyStopping`.
    dataset : Dataset class, default=ArrayDataset
        Wraps the arrays.
    iterator_train, iterator_valid : class or "auto", default="auto"
        "auto": whole-batch indexing of arrays, a DataLoader for torch Datasets or when
        ``iterator_train__*`` gives arguments of one.
    classes, compile, predict_nonlinearity, torch_load_kwargs, use_caching
        As in `skorch.NeuralNetClassifier`.
    **kwargs
        Arguments of parts: ``module__*``, ``criterion__*``, ``optimizer__*``, ``callbacks__*``,
        ``iterator_train__*``.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        The class labels, sorted.
    class_counts_ : ndarray of int64, shape (K,)
        Rows of each class in the training part; calls of ``partial_fit`` add up.
    n_features_in_ : int
        Columns of X; for 4-D images the size of axis 1.
    feature_names_in_ : ndarray of str
        Names of the columns, if X has string names.
    history_ : skorch History
        A row for each epoch.
    pretraining_history_ : skorch History
        That of the pre-trainer, if ``init_backbone`` is one.
    module_, criterion_, optimizer_ : object
        The fitted parts.
    logit_scale_ : float
        Scale s of the loss, by which logits are multiplied in ``predict_proba``.

    See Also
    --------
    imbmargin.make_classifier : A method by its name in the paper.
    imblearn.ensemble.BalancedRandomForestClassifier : Trees for the same task.

    Notes
    -----
    X may be an array, DataFrame, tensor, SciPy sparse matrix (made dense a batch at a time),
    memory map (never read as a whole), 4-D images with channels first or last, or a torch Dataset
    with targets 0..K-1.

    Class counts, weights and samplers see the training part only. Training data are shuffled in
    every epoch.

    References
    ----------
    .. [1] Kang, Vu, Yoo, "Learning Imbalanced Datasets with Maximum Margin Loss", ICIP 2021.
    .. [2] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> X, y = load_wine(return_X_y=True)
    >>> X_lt, y_lt = make_long_tailed(X, y, imbalance_ratio=5, random_state=0)
    >>> clf = MaxMarginClassifier(loss="mm_ldam", drw_epoch=0.8, max_epochs=30, random_state=0)
    >>> clf = clf.fit(X_lt, y_lt)
    >>> clf.score(X, y) > 0.9
    True
    """

    #: Whether all that moves the class shares which it learns from are its parameters.
    has_known_prior = True

    def __init__(
        self,
        module: Any = "auto",
        *,
        loss: Any = "mm",
        loss_epoch: Any = None,
        delta_neg: float = 0.6,
        beta: float = 1.5,
        class_weight: Any = None,
        drw_epoch: Any = None,
        resample: Any = None,
        drs_epoch: Any = None,
        augment: Any = "auto",
        mixing: Any = None,
        image_shape: tuple[int, int, int] | None = None,
        init_backbone: Any = None,
        optimizer: Any = "auto",
        lr: Any = "auto",
        lr_schedule: Any = "auto",
        max_epochs: int = 200,
        batch_size: int = 128,
        ema_decay: float | None = None,
        precision: str = "float32",
        checkpoint_dir: Any = None,
        device: Any = "auto",
        train_split: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        random_state: Any = None,
        callbacks: Any = None,
        dataset: Any = ArrayDataset,
        iterator_train: Any = "auto",
        iterator_valid: Any = "auto",
        classes: Any = None,
        compile: bool = False,
        predict_nonlinearity: Any = "auto",
        torch_load_kwargs: dict[str, Any] | None = None,
        use_caching: Any = "auto",
        **kwargs: Any,
    ) -> None:
        if "criterion" in kwargs:
            raise TypeError("criterion is called `loss` here; its arguments are criterion__*")
        super().__init__(
            module,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            device=device,
            train_split=train_split,
            warm_start=warm_start,
            verbose=verbose,
            callbacks=callbacks,
            dataset=dataset,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            classes=classes,
            compile=compile,
            predict_nonlinearity=predict_nonlinearity,
            torch_load_kwargs=torch_load_kwargs,
            use_caching=use_caching,
            **kwargs,
        )
        self.loss = loss
        self.loss_epoch = loss_epoch
        self.delta_neg = delta_neg
        self.beta = beta
        self.class_weight = class_weight
        self.drw_epoch = drw_epoch
        self.resample = resample
        self.drs_epoch = drs_epoch
        self.augment = augment
        self.mixing = mixing
        self.image_shape = image_shape
        self.init_backbone = init_backbone
        self.lr_schedule = lr_schedule
        self.ema_decay = ema_decay
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Collect the arguments of a part; sizes that come from the data are filled in here."""
        given = super().get_params_for(prefix)
        if prefix == "module":
            module = resolve_module(self.module, self._layout)
            check_arguments(prefix, module, given)
            if not isinstance(module, torch.nn.Module):
                loss = resolve_loss(self.loss)
                sizes = module_arguments(module, self._layout, self._num_classes, loss)
                check_sizes(module, {**sizes, **given})
                return {**sizes, **given}
        elif prefix == "criterion":
            loss = resolve_loss(self.loss)
            check_arguments(prefix, loss, given)
            own = {"delta_neg": self.delta_neg, "beta": self.beta}
            return {**loss_arguments(loss, own, self.module_), **given}
        return given

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Collect the arguments of the optimizer, with what "auto" stands for."""
        args, given = super().get_params_for_optimizer(prefix, named_parameters)
        if given["lr"] == "auto":
            del given["lr"]
        optimizer, defaults = resolve_optimizer(self.optimizer, self._layout)
        check_arguments(prefix, optimizer, given)
        given = {**defaults, **given}
        return args, {**fused_step(optimizer, given, self.module_), **given}

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        weighting = resolve_scheme(self.class_weight, self.drw_epoch)
        resampling = resolve_scheme(self.resample, self.drs_epoch)
        schedule = self.lr_schedule
        if isinstance(schedule, str) and schedule == "auto":
            schedule = default_schedule(self._layout, self.callbacks)
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            (
                "valid_balanced_accuracy",
                EpochScoring(
                    _balanced_accuracy_scorer,
                    name="valid_balanced_accuracy",
                    lower_is_better=False,
                ),
            ),
            ("loss", DeferredLoss(self.loss_epoch)),
            ("reweighting", DeferredReweighting(self.drw_epoch, weighting)),
            ("resampling", DeferredResampling(self.drs_epoch, resampling)),
            ("lr_schedule", LearningRateSchedule(schedule)),
            ("print_log", PrintLog()),
        ]

    def initialize_module(self) -> MaxMarginClassifier:
        """Make the network; sizes come from the data."""
        layout, num_classes = self._layout, self._num_classes
        module = resolve_module(self.module, layout)
        arguments = self.get_params_for("module")
        with isolated_random_state(self.seed_, 0, device=self.device):
            if isinstance(module, torch.nn.Module) and not arguments:
                built = adapt_module(module, num_classes)
            else:
                built = self.initialized_instance(module, arguments)
            if layout is not None and num_classes is not None and is_sized(module, self.callbacks):
                check_module(built, layout, num_classes, self.device)
        if layout is not None and layout.image_shape is not None:
            built = built.to(memory_format=torch.channels_last)
        self.module_ = built
        self._begin_average()
        return self

    def initialize_criterion(self) -> MaxMarginClassifier:
        """Make the loss, and bind the class counts if they are known."""
        # Of an instance a copy: training binds class counts and weights to it.
        loss = copy.deepcopy(resolve_loss(self.loss))
        self.criterion_ = self.initialized_instance(loss, self.get_params_for("criterion"))
        let_weight_come_and_go(self.criterion_)
        self.logit_scale_ = float(getattr(self.criterion_, "scale", 1.0))
        return self

    def initialize_optimizer(self, *_: Any) -> MaxMarginClassifier:
        """Make the optimizer, and the gradient scaler that float16 needs."""
        args, kwargs = self.get_params_for_optimizer("optimizer", self.get_all_learnable_params())
        optimizer = resolve_optimizer(self.optimizer, self._layout)[0]
        self.optimizer_ = optimizer(*args, **kwargs)
        self._initialize_grad_scaler()
        return self

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Split off the validation part, and bind to the loss what the training part shows."""
        dataset = self.get_dataset(X, y)
        if not self.train_split:
            train, valid = dataset, None
        else:
            numeric = isinstance(self.train_split, Real)
            split = StratifiedSplit(self.train_split) if numeric else self.train_split
            train, valid = split(dataset, targets_of(dataset), **fit_params)
            valid = self._check_validation_part(valid)
        self._bind_training_part(train)
        return train, valid

    def _bind_training_part(self, train: Any) -> None:
        counts = class_counts(targets_of(train), len(self.classes_))
        # Calls of partial_fit see one stream of rows.
        if self.open_ended_ and len(self.history):
            counts = counts + self.class_counts_
        self.class_counts_ = counts
        if hasattr(self.criterion_, "set_class_counts"):
            self.criterion_.set_class_counts(torch.as_tensor(counts, device=self.device))
        self._set_statistics(train)
        if not len(self.history):
            self.__dict__.pop("pretraining_history_", None)
        if self.init_backbone is not None and not len(self.history):
            source = self.init_backbone
            if hasattr(source, "pretrain_for"):
                source = source.pretrain_for(self, train)
                self.pretraining_history_ = source.history_
            load_backbone(self.module_, source)
        shape = None if self._layout is None else self._layout.image_shape
        self.augment_ = make_augment(self.augment, shape)
        self.mixing_ = make_mixing(self.mixing)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches: whole-batch indexing of arrays, else a DataLoader."""
        prefix = "iterator_train" if training else "iterator_valid"
        factory, kwargs = getattr(self, prefix), self.get_params_for(prefix)
        kwargs.setdefault("batch_size", self.batch_size)
        if kwargs["batch_size"] == -1:
            kwargs["batch_size"] = len(dataset)
        if factory not in ("auto", DataLoader):
            return factory(dataset, **kwargs)
        whole = factory == "auto" and is_array_dataset(dataset) and kwargs.keys() == {"batch_size"}
        if training and not kwargs.keys() & {"sampler", "batch_sampler", "shuffle"}:
            kwargs["sampler"] = ClassSampler(targets_of(dataset), self._num_classes)
            # Where DeferredResampling finds it.
            dataset.class_sampler = kwargs["sampler"]
            rows, size = len(dataset), kwargs["batch_size"]
            if not whole and rows > size and rows % size == 1:
                # Batch normalisation is not defined on a single row; in each epoch it is another.
                kwargs.setdefault("drop_last", True)
        if whole:
            return ArrayBatches(dataset, device=self.device, **kwargs)
        if not training:
            # Each pass over it draws a number; the global generator is that of the training.
            kwargs.setdefault("generator", torch.Generator())
        return DataLoader(dataset, **kwargs)

    def _check_parameters(self) -> None:
        resolve_precision(self.precision, self.device)
        loss = resolve_loss(self.loss)
        resolve_module(self.module, None)
        if make_mixing(self.mixing) is not None:
            check_row_weights(loss, f"mixing={self.mixing!r}")
        for name in ("max_epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or (value < 1 and (name, value) != _ALL_ROWS):
                cure = "; -1 takes all rows" if name == "batch_size" else ""
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}{cure}")
        if self.callbacks not in (None, "disable") and not isinstance(self.callbacks, list):
            raise ValueError(
                f"callbacks must be a list of skorch callbacks or None, got {self.callbacks!r}"
            )
        if self.checkpoint_dir is not None and (self.open_ended_ or self.warm_start):
            raise ValueError(
                f"checkpoint_dir={str(self.checkpoint_dir)!r} is for fit with warm_start=False, "
                "which begins anew; without it, partial_fit and warm_start go on from memory"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay must be None, or at least 0 and below 1, got {self.ema_decay!r}"
            )
        for name in ("loss_epoch", "drw_epoch", "drs_epoch"):
            resolve_epoch(getattr(self, name), self.max_epochs, name, self.open_ended_)

    def _check_targets(self, target: np.ndarray) -> None:
        # A wrong scheme is an error now, not at the epoch when it switches on.
        counts = class_counts(target, len(self.classes_))
        class_weights(counts, self.class_weight, classes=self.classes_)
        class_rates(counts, self.resample, classes=self.classes_)

"""Counts the floating-point operations of what runs, and lists what no formula counts."""

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from backbones.flops import torch_formulas  # noqa: F401  fills the table
from backbones.flops.operators import describe
from backbones.ops import flops
from backbones.ops.dispatch import Backend, Operation, watching


@dataclass
class Uncounted:
    """What ran without a formula.

    Attributes:
        calls: How often.
        elements: Numbers in all that it gave.
    """

    calls: int = 0
    elements: int = 0


@dataclass
class Counts:
    """What a `FlopCounter` found.

    Attributes:
        by_operator: FLOPs, a multiply-add counting two, of each operator of torch and each operation of ours.
        by_module: The same of each module, by its name in the model; those of its children not among them.
        uncounted: What ran without a formula: groups of harmless operators, and all others by name.
        backends: Of each of our operations that ran, the backend.
    """

    by_operator: Counter = field(default_factory=Counter)
    by_module: Counter = field(default_factory=Counter)
    uncounted: dict[str, Uncounted] = field(default_factory=lambda: defaultdict(Uncounted))
    backends: dict[str, str] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """All of them."""
        return sum(self.by_operator.values())

    def within(self, name: str) -> int:
        """FLOPs of a module and all below it; "" for the whole model."""
        return sum(n for module, n in self.by_module.items() if not name or f"{module}.".startswith(f"{name}."))


class FlopCounter(contextlib.AbstractContextManager):
    """While it lasts, counts all that runs in this thread.

    Torch's operators are counted by torch's own formulas. Our operations are counted by
    `backbones.ops.flops.FORMULAS`, once a call and whatever their backend does; one without a formula there is listed
    as uncounted, and what runs within it counts as torch's.

    Args:
        model: Whose modules' names `Counts.by_module` holds.

    Attributes:
        counts: What was found.
    """

    def __init__(self, model: nn.Module | None = None):
        self.counts = Counts()
        self._names = {module: name for name, module in model.named_modules()} if model is not None else {}
        self._running: list[str] = []
        self._within = 0

    def __enter__(self) -> "FlopCounter":
        with contextlib.ExitStack() as stack:
            if self._names:
                # What a module does outside of the model's is its parent's.
                stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
                stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
            stack.enter_context(watching(self._run_operation))
            # The fused layers of torch.nn are one operator each, which torch has no formula for.
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(_Operators(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def list_uncounted(self, name: str, outputs: object) -> None:
        """Notes a call of what no dispatcher shows, such as a function of a compiled extension."""
        entry = self.counts.uncounted[name]
        entry.calls += 1
        entry.elements += sum(x.numel() for x in tree_leaves(outputs) if isinstance(x, Tensor))

    def _enter_module(self, module: nn.Module, inputs) -> None:
        self._running.append(self._names.get(module, self._running[-1] if self._running else ""))

    def _leave_module(self, module: nn.Module, inputs, output) -> None:
        self._running.pop()

    def _add(self, name: str, number: int) -> None:
        self.counts.by_operator[name] += number
        self.counts.by_module[self._running[-1] if self._running else ""] += number

    def _run_operation(self, operation: Operation, backend: Backend, arguments: tuple):
        if self._within:
            # Part of another one, which is counted as a whole.
            return backend.run(*arguments)
        self.counts.backends[operation.name] = backend.name
        formula = flops.FORMULAS.get(operation.name)
        if formula is None:
            out = backend.run(*arguments)
            self.list_uncounted(operation.name, out)
            return out
        self._add(operation.name, formula(*arguments))
        self._within += 1
        try:
            return backend.run(*arguments)
        finally:
            self._within -= 1

    def _see(self, func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object) -> None:
        if self._within:
            return
        packet = func._overloadpacket
        if packet in flop_registry:
            self._add(func._schema.name.replace("::", "."), flop_registry[packet](*args, **kwargs, out_val=out))
        else:
            self.list_uncounted(describe(func), out)


class _Operators(TorchDispatchMode):
    """Shows every operator of torch to a counter."""

    def __init__(self, counter: FlopCounter):
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":
            # A question, such as for the device of a fake tensor, and nothing that runs.
            return func(*args, **kwargs)
        if func._overloadpacket not in flop_registry:
            # In inference mode what is made of other operators comes in one piece.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._counter._see(func, args, kwargs, out)
        return out

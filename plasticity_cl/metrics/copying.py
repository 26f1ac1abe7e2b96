"""Copies of whole strategies: everything that holds on to the network holds on to the new one in the copy."""

from __future__ import annotations

import copy
import dis
import gc
import logging
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any

import torch
from avalanche.benchmarks import CLExperience, CLScenario, CLStream
from avalanche.core import BasePlugin
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from plasticity_cl.errors import UserError

# What nobody changes while a strategy trains, or what stands for something outside of it.
_SHARED = (
    *(type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.FrameType, Enum, logging.Logger),
    *(CLExperience, CLScenario, CLStream, Dataset, DataLoader, torch.dtype, torch.device),
)
_ATOMIC = (type(None), bool, int, float, complex, str, bytes, type(...), range)
_WITH_STATE = (nn.Module, Optimizer, LRScheduler, torch.Generator, BasePlugin, BaseTemplate)
_MARK = "_holds_on_to_copies"
_LIBRARIES = ("torch.", "avalanche.", "plasticity_cl.", "builtins.", "typing.", "abc.")


class CopyError(UserError):
    """Something that a strategy holds cannot be copied, or not so that the copy follows another network."""


def network_parts(model: nn.Module) -> dict[str, Any]:
    """Every module, parameter and buffer of a network by a name of its own."""
    parts: dict[str, Any] = {f"module {name}": part for name, part in model.named_modules(remove_duplicate=False)}
    parts |= {f"parameter {name}": part for name, part in model.named_parameters(remove_duplicate=False)}
    return parts | {f"buffer {name}": part for name, part in model.named_buffers(remove_duplicate=False)}


def bound_copy(root: Any, replacements: Iterable[tuple[Any, Any]]) -> Any:
    """A deep copy in which some objects are exchanged for others, wherever they are held.

    ``copy.deepcopy`` does most of it. What it gets wrong is done here:

    - Optimizers keep all of their attributes, not only the ones that PyTorch pickles, and their constructors are not
      called, so that one with a constructor of its own is copied like any other.
    - Functions that hold on to variables around them (closures and defaults; also methods of a class that was defined
      in a function) hold on to the copies. PyTorch's schedulers replace ``optimizer.step`` by such a function.
    - Weak references point to the copies.
    - Tensors that share the memory of a replaced one (``parameter.data``) share that of its replacement. Those that are
      equal to a replaced one, to the last bit and without being constant, were copied from it, as a plugin does that
      pulls weights back to their initialisation: they become copies of its replacement.

    Data sets, streams, experiences, loaders and everything that has no state (classes, modules, plain functions) are
    not copied but shared.

    Args:
        root: What to copy, a strategy for instance.
        replacements: Pairs of an object and what stands for it in the copy.

    Returns:
        The copy.

    Raises:
        CopyError: If something is held that cannot be copied, or that is reached through a global variable, which a
            copy cannot exchange; its name is in the message.
    """
    pairs = list(replacements)
    memo: dict[int, Any] = {id(old): new for old, new in pairs}
    reached = _Reached(root, memo, [(old, new) for old, new in pairs if isinstance(old, Tensor)])
    untouched = dict(memo)
    try:
        for optimizer in reached.optimizers:
            memo[id(optimizer)] = object.__new__(type(optimizer))
        for generator in reached.generators:
            memo[id(generator)] = torch.Generator(generator.device).set_state(generator.get_state())
        for function in reached.functions:
            memo[id(function)] = _unbound(function)
        for method in reached.methods:
            memo[id(method)] = types.MethodType(memo[id(method.__func__)], copy.deepcopy(method.__self__, memo))
        for reference in reached.references:
            target = reference()
            if target is not None and (id(target) in reached.seen or id(target) in memo):
                memo[id(reference)] = type(reference)(copy.deepcopy(target, memo))
        result = copy.deepcopy(root, memo)
        for optimizer in reached.optimizers:
            vars(memo[id(optimizer)]).update(copy.deepcopy(vars(optimizer), memo))
        for function in reached.functions:
            _bind(function, memo[id(function)], memo)
        classes: dict[type, type] = {}
        for instance in reached.local_instances:
            moved, kind = copy.deepcopy(instance, memo), type(instance)
            if kind not in classes:
                classes[kind] = _local_class(kind, memo)
            moved.__class__ = classes[kind]
    except CopyError:
        raise
    except Exception as error:  # whatever a stranger's object raises when it is copied
        raise CopyError(f"{_holder(root, untouched)} cannot be copied ({type(error).__name__}: {error})") from error
    return result


class _Reached:
    """What can be reached from an object, as far as copying it needs more than ``copy.deepcopy``.

    Shared objects and tensors that go with replaced ones are entered into ``memo`` on the way.
    """

    def __init__(self, root: Any, memo: dict[int, Any], tensors: list[tuple[Tensor, Tensor]]) -> None:
        self.optimizers: list[Optimizer] = []
        self.generators: list[torch.Generator] = []
        self.functions: list[types.FunctionType] = []
        self.methods: list[types.MethodType] = []
        self.references: list[weakref.ref[Any]] = []
        self.local_instances: list[Any] = []
        # What is in it is kept alive, so that no number of it is given to something new.
        self.seen: dict[int, Any] = {id(root): root}
        self._readers: dict[types.FunctionType, str] = {}
        waiting = [root]
        while waiting:
            item = waiting.pop()
            if id(item) in memo:
                continue
            if isinstance(item, _SHARED):
                memo[id(item)] = item
            elif isinstance(item, Tensor):
                moved = _moved(item, tensors)
                if moved is not None:
                    memo[id(item)] = moved
            else:
                for found in self._look_at(item):
                    if id(found) not in self.seen and type(found) not in _ATOMIC:
                        self.seen[id(found)] = found
                        waiting.append(found)
        self._refuse_globals(memo)

    def _look_at(self, item: Any) -> Iterator[Any]:
        if isinstance(item, weakref.ref):
            self.references.append(item)
            return
        if isinstance(item, types.FunctionType):
            self._readers[item] = item.__qualname__
            if _holds_state(item):
                self.functions.append(item)
                yield from _held_by(item)
            return
        if isinstance(item, types.MethodType):
            yield item.__self__
            function = item.__func__
            if isinstance(function, types.FunctionType) and _holds_state(function):
                self.methods.append(item)
                yield function
            return
        if isinstance(item, torch.Generator):
            self.generators.append(item)
            return
        if isinstance(item, Optimizer):
            self.optimizers.append(item)
        methods = _methods(type(item))  # type: ignore[arg-type] # classes are hashable
        self._readers |= dict.fromkeys(methods, type(item).__name__)
        stateful = [method for method in methods if _holds_state(method)]
        if stateful:
            self.local_instances.append(item)
            yield from stateful
        yield from _what_is_copied_of(item)

    def _refuse_globals(self, memo: Mapping[int, Any]) -> None:
        """Refuse functions that read what is copied from global variables: their copies would read the originals."""
        waiting = dict(self._readers)
        done: set[types.FunctionType] = set()
        while waiting:
            function, holder = waiting.popitem()
            if function in done or _is_of_a_library(function):
                continue
            done.add(function)
            for name in _global_names(function.__code__):
                value = function.__globals__.get(name)
                if isinstance(value, types.FunctionType):
                    waiting[value] = holder
                copied = id(value) in self.seen if id(value) not in memo else memo[id(value)] is not value
                if copied and isinstance(value, _WITH_STATE) and not _is_plain(value):
                    raise CopyError(f"{holder} reads the global variable {name}")


def _what_is_copied_of(item: Any) -> Iterable[Any]:
    kind = type(item)
    if hasattr(kind, "__deepcopy__"):
        return ()  # its own affair
    if isinstance(kind.__reduce__, types.FunctionType) or isinstance(kind.__reduce_ex__, types.FunctionType):
        return item.__reduce_ex__(4)  # type: ignore[no-any-return]
    return gc.get_referents(item)


@cache
def _methods(kind: type) -> tuple[types.FunctionType, ...]:
    """The functions in a stranger's class, those behind properties too; libraries' classes hold no state."""
    functions = [function for _, part in _members(kind) for function in _functions_in(part)]
    return tuple(function for function in functions if not _is_of_a_library(function))


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """What stands in a class and its bases, but for constructors, which a copy never calls."""
    hidden = {"__init__", "__new__", "__init_subclass__", "__class_getitem__"}
    for base in kind.__mro__:
        for name, part in vars(base).items():
            if name not in hidden:
                yield name, part
        if _MARK in vars(base):
            hidden |= vars(base).keys()


def _functions_in(part: Any) -> list[types.FunctionType]:
    inner = [part.fget, part.fset, part.fdel] if isinstance(part, property) else [getattr(part, "__func__", part)]
    return [function for function in inner if isinstance(function, types.FunctionType)]


def _is_of_a_library(function: types.FunctionType) -> bool:
    return f"{function.__module__}.".startswith(_LIBRARIES)


def _held_by(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that was never set
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _holds_state(function: types.FunctionType, known: tuple[Any, ...] = ()) -> bool:
    """Whether a function holds on to anything that could change, itself or through functions that it holds on to."""
    for value in _held_by(function):
        if isinstance(value, types.FunctionType):
            if value not in known and _holds_state(value, (*known, function)):
                return True
        elif not isinstance(value, (*_ATOMIC, *_SHARED)):
            return True
    return False


def _unbound(function: types.FunctionType) -> types.FunctionType:
    """The same function, whose closure is still empty."""
    closure = tuple(types.CellType() for _ in function.__closure__ or ())
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure or None)
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return made


def _bind(function: types.FunctionType, made: types.FunctionType, memo: dict[int, Any]) -> None:
    for old, new in zip(function.__closure__ or (), made.__closure__ or (), strict=True):
        try:
            new.cell_contents = copy.deepcopy(old.cell_contents, memo)
        except ValueError:
            continue
    made.__defaults__ = copy.deepcopy(function.__defaults__, memo)
    made.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    vars(made).update(copy.deepcopy(vars(function), memo))


def _local_class(kind: type, memo: dict[int, Any]) -> type:
    """A subclass of ``kind`` whose methods hold on to the copies."""
    members: dict[str, Any] = {}
    seen: set[str] = set()
    for name, part in _members(kind):
        if any(id(function) in memo for function in _functions_in(part)):
            if name in seen:
                raise CopyError(f"{kind.__name__} overrides {name}, and what it overrides holds on to variables")
            members[name] = _with_copies(part, memo)
        seen.add(name)
    stranger = next(base for base in kind.__mro__ if _MARK not in vars(base))
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, _MARK: True}
    made: type = type(kind)(kind.__name__, (stranger,), {**members, **names})
    return made


def _with_copies(part: Any, memo: Mapping[int, Any]) -> Any:
    def moved(function: Any) -> Any:
        return memo.get(id(function), function)

    if isinstance(part, property):
        return property(moved(part.fget), moved(part.fset), moved(part.fdel), part.__doc__)
    return type(part)(moved(part.__func__)) if isinstance(part, staticmethod | classmethod) else moved(part)


def _moved(tensor: Tensor, tensors: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """What stands for a tensor that goes with a replaced one, as its view or its copy; ``None`` for any other."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    for old, new in tensors:
        if tensor.untyped_storage().data_ptr() == old.untyped_storage().data_ptr() and new.stride() == old.stride():
            view = new.detach().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            return view.requires_grad_(tensor.requires_grad)
    for old, new in tensors:
        alike = (tensor.shape, tensor.dtype, tensor.device) == (old.shape, old.dtype, old.device)
        if alike and torch.equal(tensor, old) and not bool((tensor == tensor.flatten()[0]).all()):
            copied = new.detach().to(tensor.device).clone()
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(copied, tensor.requires_grad)
            return copied.requires_grad_(tensor.requires_grad)
    return None


def _is_plain(value: Any) -> bool:
    """Whether a module holds nothing that training could change, as most criteria do."""
    return isinstance(value, nn.Module) and not isinstance(value, BasePlugin) and not value.state_dict()


def _global_names(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _holder(root: Any, memo: dict[int, Any]) -> str:
    """The part of a strategy that cannot be copied, by its name."""
    for part in [*getattr(root, "plugins", ()), *vars(root).values()]:
        try:
            copy.deepcopy(part, dict(memo))
        except Exception:
            return f"{type(part).__name__} of {type(root).__name__}"
    return type(root).__name__

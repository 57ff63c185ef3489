"""A reader of pickles that executes nothing.

A pickle is a program for a small stack machine. Python's own machine imports names and calls them;
this one has no instruction for either. It is written on top of `pickletools.genops`, which only
decodes, and knows six kinds of value: Python's plain data, lists, tuples, string-keyed
dictionaries, `Storage` and `Tensor` references, and inert `Global` / `Opaque` placeholders.

- A name of another library is a `Global`: two strings. It may be a value or a key, as Lightning's
  checkpoints have it.
- An object made without a call (`NEWOBJ`, then `BUILD`) is `Opaque` and forgets its state. - A call
(`REDUCE`, `OBJ`, `INST`) yields something only for the functions that rebuild tensors, and `Opaque`
for a short list of harmless constructors. Any other call, for example of `os.system`, is treated as
an attack: nothing runs, and the file is refused.

Subclassing `pickle.Unpickler` would be shorter, but a single instruction can make its memo fill the
memory, and its tuples and keys can overflow the stack or hash for ever.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

from unix_jax.checkpoints.formats.pickle_values import HARMLESS, Global, Opaque, Storage, Tensor
from unix_jax.checkpoints.formats.tensor_source import quoted
from unix_jax.errors import CheckpointError

# A real checkpoint with optimiser state has some ten instructions per tensor.
MAX_INSTRUCTIONS = 4_000_000


# Protocols 0 to 2 write the names that Python 2 had.
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

_MARK = object()


class _Machine:
    """One run over one pickle; `file` is read up to and including the STOP instruction."""

    def __init__(self, file: io.BytesIO, source: str):
        self._file = file
        self._source = source
        self._budget = MAX_INSTRUCTIONS
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Raises CheckpointError."""
        try:
            for code, argument, _ in pickletools.genops(self._file):
                self._spend(1)
                if code.name == "STOP":
                    return self._pop()
                self._step(code.name, argument)
        except (ValueError, OverflowError, EOFError, MemoryError, RecursionError) as error:
            reason = quoted(str(error) or type(error).__name__)
            raise CheckpointError(f"{self._source}: the pickle is broken: {reason}") from error
        raise self._broken("it does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif name in _PUSH_NEW:
            self._stack.append(_PUSH_NEW[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _NOTHING:
            raise self._refused(f"the instruction {name}")

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: the pickle is broken: {what}")

    def _refused(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source}: refused, nothing in it was executed: the pickle contains {what}, "
            "which weights do not need. If you trust the file, save its state dict alone"
        )

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise self._broken(f"it has more than {MAX_INSTRUCTIONS} instructions")

    # The stack.

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._broken("its stack is empty where a value is expected")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._broken("its stack is empty where a value is expected")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise self._broken("a mark is missing")

    def _tuple_of(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def _pop_any(self) -> None:
        if not self._stack:
            raise self._broken("its stack is empty where a value is expected")
        self._stack.pop()

    def _fetch(self, index: int) -> None:
        if index not in self._memo:
            raise self._broken(f"it recalls value {quoted(index)}, which it never stored")
        self._stack.append(self._memo[index])

    def _store(self, index: int) -> None:
        self._memo[index] = self._top()

    # Containers. What is added to a placeholder is dropped.

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise self._broken(f"it appends to {quoted(target)}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise self._broken("a dictionary's key has no value")
        if isinstance(target, dict):
            _fill(target, zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Opaque):
            raise self._broken(f"it sets an item of {quoted(target)}")

    def _new_dict(self) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _frozen_set(self) -> None:
        self._pop_to_mark()
        self._stack.append(Opaque())

    # Names, objects and calls.

    def _global(self, names: str) -> None:
        self._stack.append(_named(*names.partition(" ")[::2]))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._broken("a global's name is not a string")
        self._stack.append(_named(module, name))

    def _new_object(self, operands: int) -> None:
        """NEWOBJ makes an object of a class without calling its constructor."""
        for _ in range(operands):
            self._pop()
        kind = self._pop()
        if not isinstance(kind, Global):
            raise self._refused(f"an object made from {quoted(kind)}")
        is_dict = (kind.module, kind.name) == ("collections", "OrderedDict")
        self._stack.append({} if is_dict else Opaque())

    def _build(self) -> None:
        self._pop()
        self._top()

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._call(function, arguments))

    def _obj(self) -> None:
        items = self._pop_to_mark()
        if not items:
            raise self._broken("an object has no class")
        self._stack.append(self._call(items[0], tuple(items[1:])))

    def _inst(self, names: str) -> None:
        arguments = tuple(self._pop_to_mark())
        self._stack.append(self._call(_named(*names.partition(" ")[::2]), arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        """The value of a call that is known, without making it."""
        if not isinstance(function, Global):
            raise self._refused(f"a call of {quoted(function)}")
        if not isinstance(arguments, tuple):
            raise self._broken(f"{function} is called with {quoted(arguments)}")
        name = f"{function.module}.{function.name}"
        if name in _REBUILD:
            rebuild, least = _REBUILD[name]
            if len(arguments) < least:
                raise self._broken(f"{function} is called with {len(arguments)} arguments")
            return rebuild(self, arguments)
        if name in HARMLESS:
            return Opaque()
        raise self._refused(f"a call of {function}")

    def _ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        if arguments:
            pairs = arguments[0]
            if not isinstance(pairs, list):
                raise self._broken(f"an OrderedDict is made of {quoted(pairs)}")
            self._spend(len(pairs))  # the one instruction that copies
            if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
                raise self._broken("an OrderedDict is made of something other than pairs")
            _fill(result, pairs)
        return result

    def _tensor_v3(self, arguments: tuple[Any, ...]) -> Tensor:
        dtype = arguments[6]
        if not isinstance(dtype, Global) or dtype.module != "torch":
            raise self._broken(f"a tensor's type is {quoted(dtype)}")
        storage, offset, shape, stride = arguments[:4]
        return Tensor(storage, offset, shape, stride, dtype.name)

    def _tensor_subclass(self, arguments: tuple[Any, ...]) -> Any:
        """`_rebuild_from_type_v2(rebuild, type, arguments, state)`."""
        return self._call(arguments[0], arguments[2])

    def _persistent(self) -> None:
        """Torch's reference to a storage: ('storage', type, key, location, count)."""
        value = self._pop()
        if (
            not isinstance(value, tuple)
            or len(value) not in (5, 6)
            or value[0] != "storage"
            or not isinstance(value[1], Global)
            or not isinstance(value[2], str)
        ):
            raise self._broken("a persistent id is not a torch storage")
        if len(value) == 6 and value[5] is not None:
            raise self._broken("it has storages that are views, of a torch older than 0.4")
        self._stack.append(Storage(value[1].name, value[2], value[4]))


def _named(module: str, name: str) -> Global:
    return Global(_PYTHON_2_MODULES.get(module, module), name)


def _fill(target: dict[Any, Any], pairs: Any) -> None:
    # Keys that are no strings keep their place but not their value: hashing a nested tuple can
    # overflow the stack or take for ever, and no tensor is looked up by one.
    for key, value in pairs:
        target[key if isinstance(key, str) else Opaque()] = value


_REBUILD: dict[str, tuple[Callable[[_Machine, tuple[Any, ...]], Any], int]] = {
    "collections.OrderedDict": (_Machine._ordered_dict, 0),
    "torch.Size": (lambda machine, arguments: arguments[0], 1),
    "torch._utils._rebuild_tensor": (lambda machine, arguments: Tensor(*arguments[:4]), 4),
    "torch._utils._rebuild_tensor_v2": (lambda machine, arguments: Tensor(*arguments[:4]), 4),
    "torch._utils._rebuild_tensor_v3": (_Machine._tensor_v3, 7),
    "torch._utils._rebuild_parameter": (lambda machine, arguments: arguments[0], 1),
    "torch._utils._rebuild_parameter_with_state": (lambda machine, arguments: arguments[0], 1),
    "torch._tensor._rebuild_from_type_v2": (_Machine._tensor_subclass, 3),
}

_PUSH_ARGUMENT = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    }
)

_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Opaque,
    "MARK": lambda: _MARK,
}

_NOTHING = frozenset({"PROTO", "FRAME"})

_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "LIST": lambda m, _: m._stack.append(m._pop_to_mark()),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
    "TUPLE1": lambda m, _: m._tuple_of(1),
    "TUPLE2": lambda m, _: m._tuple_of(2),
    "TUPLE3": lambda m, _: m._tuple_of(3),
    "DICT": lambda m, _: m._new_dict(),
    "FROZENSET": lambda m, _: m._frozen_set(),
    "APPEND": lambda m, _: m._append([m._pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "ADDITEMS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_item(),
    "SETITEMS": lambda m, _: m._set_items(m._pop_to_mark()),
    "POP": lambda m, _: m._pop_any(),
    "POP_MARK": lambda m, _: m._pop_to_mark().clear(),
    "DUP": lambda m, _: m._stack.append(m._top()),
    "GET": lambda m, index: m._fetch(index),
    "BINGET": lambda m, index: m._fetch(index),
    "LONG_BINGET": lambda m, index: m._fetch(index),
    "PUT": lambda m, index: m._store(index),
    "BINPUT": lambda m, index: m._store(index),
    "LONG_BINPUT": lambda m, index: m._store(index),
    "MEMOIZE": lambda m, _: m._store(len(m._memo)),
    "GLOBAL": lambda m, names: m._global(names),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "NEWOBJ": lambda m, _: m._new_object(1),
    "NEWOBJ_EX": lambda m, _: m._new_object(2),
    "BUILD": lambda m, _: m._build(),
    "REDUCE": lambda m, _: m._reduce(),
    "OBJ": lambda m, _: m._obj(),
    "INST": lambda m, names: m._inst(names),
    "BINPERSID": lambda m, _: m._persistent(),
}


def read_pickle(file: io.BytesIO, source: str) -> Any:
    """The value of the pickle at the position of `file`; afterwards `file` is positioned after it.

    Args:
      file: the bytes; torch's older format has several pickles in a row.
      source: the file's name, for errors.

    Returns:
      Plain data, `Global`, `Opaque`, `Storage` and `Tensor`; keys that are not strings have been
      replaced by `Opaque`.

    Raises:
      CheckpointError: the pickle is broken, too long, or calls something.
    """
    return _Machine(file, source).run()

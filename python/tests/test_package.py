"""The package says of itself what it is: stubs of just what there is, and typed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import refrain_kv
from refrain_kv import _native, errors

HOME = Path(refrain_kv.__file__).parent
STUBS = {
    node.name: node
    for node in ast.parse((HOME / "_native.pyi").read_text()).body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
}


def public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_stubs_name_every_class_and_no_other():
    there = {name for name, it in vars(_native).items() if inspect.isclass(it)}
    assert there == set(STUBS)
    assert there | {name for name, it in vars(errors).items() if inspect.isclass(it)} == set(
        refrain_kv.__all__
    )
    assert (HOME / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(STUBS))
def test_a_stub_has_the_methods_and_parameters_of_its_class(name):
    stub = {it.name: it for it in STUBS[name].body if isinstance(it, ast.FunctionDef)}
    kind = getattr(_native, name)
    assert public(stub) == public(vars(kind))
    assert hasattr(kind, "__exit__") == any(
        isinstance(base, ast.Name) and base.id == "_Closes" for base in STUBS[name].bases
    )
    for method in public(stub):
        if not callable(getattr(kind, method)):
            continue
        arguments = stub[method].args
        said = [it.arg for it in arguments.args + arguments.kwonlyargs]
        assert [it for it in inspect.signature(getattr(kind, method)).parameters] == said, method


def test_neither_numpy_nor_pytorch_is_imported_by_the_package():
    script = "import sys, refrain_kv; sys.exit(bool({'numpy', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], check=True)

"""Deletes each statement of the library in turn and runs the module's tests.

    python3 deletions.py CHECKOUT

Prints a line for each deletion that no test of the changed function notices,
then how many were tried; exits 1 if there was any. A bug that deletes a
statement therefore always has a test that shows it.
"""

import ast
import importlib
import os
import resource
import signal
import sys
import types
import unittest


def deletions(source):
    """Yield (function, line, changed source) for each statement."""
    lines = source.split("\n")
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if not isinstance(block, list):
                    continue
                for statement in block:
                    if isinstance(statement, ast.Pass):
                        continue
                    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                        continue
                    stand_in = []
                    if len(block) == 1:
                        stand_in = [" " * statement.col_offset + "pass"]
                    start, end = statement.lineno, statement.end_lineno
                    changed = lines[: start - 1] + stand_in + lines[end:]
                    yield function.name, start, "\n".join(changed)


def noticed(module, function, source):
    """Run the module's tests over changed source, in a child process."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    signal.alarm(5)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    name = "quill." + module
    changed = types.ModuleType(name)
    exec(compile(source, module, "exec"), changed.__dict__)
    sys.modules[name] = changed
    setattr(sys.modules["quill"], module, changed)
    tests = importlib.import_module("tests.test_" + module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(tests)
    result = unittest.TestResult()
    suite.run(result)
    broken = [test for test, _ in result.failures + result.errors]
    own = [test for test in broken if test.id().split(".")[-1].startswith("test_" + function)]
    os._exit(0 if own else 1)


def main(checkout):
    os.chdir(checkout)
    sys.path.insert(0, ".")
    sys.dont_write_bytecode = True
    importlib.import_module("quill")
    tried = missed = 0
    for entry in sorted(os.listdir("quill")):
        module = entry.removesuffix(".py")
        if not entry.endswith(".py") or module == "__init__":
            continue
        with open("quill/" + entry) as file:
            source = file.read()
        for function, line, changed in deletions(source):
            tried += 1
            if not noticed(module, function, changed):
                missed += 1
                print(f"quill/{entry}:{line}: no test of {function} notices that this is gone")
    print(f"{tried} deletions, {missed} unnoticed")
    return 1 if missed or tried == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The public surface: adding or losing a name is a decision, not an accident."""

import importlib
import pkgutil
import subprocess
import sys

import ppl_em

PUBLIC = [
    "Auto",
    "EM",
    "ENGINES",
    "FitResult",
    "Plan",
    "SVI",
    "Status",
    "calibrate",
    "compare",
    "distributions",
    "explain",
    "fit",
    "guide_for",
    "iterate",
    "likelihood_ratio_test",
    "load",
    "markov",
    "select",
    "testing",
]


def test_the_public_names() -> None:
    assert dir(ppl_em) == PUBLIC
    assert sorted(ppl_em.__all__) == sorted(ppl_em._HOMES) == PUBLIC


def test_each_public_name_is_what_its_module_defines() -> None:
    for name in PUBLIC:
        home = ppl_em._HOMES[name]
        if home:
            assert getattr(ppl_em, name) is getattr(importlib.import_module(f"ppl_em.{home}"), name)
    for room in ("distributions", "testing"):
        assert getattr(ppl_em, room) is importlib.import_module(f"ppl_em.{room}")


def test_no_module_hides_a_public_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ppl_em.__path__)}
    assert modules & {*PUBLIC} == {"distributions", "testing"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, ppl_em, ppl_em.cli; print({'torch', 'pyro', 'pandas', 'arviz'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

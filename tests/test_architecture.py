"""The architecture: imports point to lower layers, files are small, third-party packages are confined."""

import ast
import pathlib
from graphlib import TopologicalSorter

ROOT = pathlib.Path(__file__).parent.parent
PKG = ROOT / "addiffusion_env"
LAB = ROOT / "addiffusion_lab"
LAYERS = [  # lowest first; a module may import its own folder or anything in a lower layer
    {"errors"},
    {"settings"},
    {"registry", "config", "files", "pages", "plugins", "profiling"},
    {"prompts"},
    {"backbones"},
    {"scorers"},
    {"observations", "rewards"},
    {"engine"},
    {"envs"},
    {"samplers"},
    {"distributed", "tabular"},
    {"agents"},
    {"evaluation"},
    {"calibration"},
    {"bench", "catalogue", "checks"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
ONLY_IN = {  # third-party name -> the only places that may import it
    "diffusers": {"backbones", "samplers", "bench"},
    "transformers": {"backbones", "scorers"},
    "open_clip": {"backbones", "scorers"},
    "openvino": {"backbones"},
    "gymnasium": {"__init__", "__main__", "observations", "envs", "agents", "checks"},
    "stable_baselines3": {"agents", "distributed", "envs", "evaluation", "bench", "checks"},
    "sb3_contrib": {"agents", "evaluation"},
    "hydra": {"config"},
    "matplotlib": {"evaluation"},
    "gradio": set(),
    "pygame": {"envs"},
}
ANYWHERE = {"addiffusion_env.__version__", "addiffusion_env.ENVIRONMENTS"}
LIBRARY = sorted(PKG.rglob("*.py"))
MODULES = [*LIBRARY, *sorted(LAB.rglob("*.py"))]


def parts_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[1:]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_downwards():
    for path in LIBRARY:
        own = parts_of(path)[0]
        for name in imports(path):
            if name.startswith("addiffusion_env.") and name not in ANYWHERE:
                target = name.split(".")[1]
                assert target == own or LEVEL[target] < LEVEL[own], f"{path} imports upwards: {name}"


def test_the_library_does_not_import_the_lab():
    assert not [path for path in LIBRARY for name in imports(path) if name.startswith("addiffusion_lab")]


def test_third_party_packages_are_confined():
    for path in LIBRARY:
        for name in imports(path):
            allowed = ONLY_IN.get(name.split(".")[0])
            assert allowed is None or parts_of(path)[0] in allowed, f"{path} may not import {name}"


def test_no_cycles_between_modules():
    name_of = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES
    }
    known = set(name_of.values())

    def owner(name):  # package.module.Class belongs to package.module
        return name if name in known else name.rpartition(".")[0]

    graph = {name: {owner(i) for i in imports(path)} & known - {name} for path, name in name_of.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError naming the cycle


def test_files_stay_readable():
    long = {
        str(p): n
        for p in [*MODULES, *ROOT.glob("*.py")]
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_scripts_are_short_and_linear():
    for script in ("train_sb3.py", "eval_sb3.py"):
        assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) < 150

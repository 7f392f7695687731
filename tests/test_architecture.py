"""The house keeps its floors: who may import whom, no circles, nothing heavy at the door, every config builds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ichkit
from ichkit.core.config import load_config, shipped_names

PACKAGE = Path(ichkit.__file__).parent
FLOORS = {
    "core": 0,
    "work": 0,
    "imaging": 1,
    "validation": 1,
    "models": 1,
    "stacking": 1,
    "engine": 2,
    "sources": 2,
    "phantom": 2,
    "show": 2,
    "tracking": 2,
    "stages": 3,
    "cli": 4,
    "api": 4,
    "__main__": 4,
}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """Modules of this package that a file imports, those inside functions too; relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {f"{node.module}.{item.name}" for item in node.names} | {node.module}
    inside = {name.removeprefix("ichkit.") for name in found if name.startswith("ichkit.")}
    known = {name_of(module) for module in modules()}
    return inside & known


def find_circle(graph):
    """A path that comes back to its start, or None."""
    done = set()

    def visit(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for follower in sorted(graph.get(node, ())):
            circle = visit(follower, [*path, node])
            if circle:
                return circle
        done.add(node)
        return None

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), None)


def test_a_module_imports_only_from_its_own_floor_or_below():
    for path in modules():
        floor = FLOORS[name_of(path).split(".")[0]]
        for imported in imports_of(path):
            assert FLOORS[imported.split(".")[0]] <= floor, f"{name_of(path)} imports {imported} from above"


def test_there_are_no_circles_between_modules_nor_between_packages():
    graph = {name_of(path): imports_of(path) for path in modules()}
    assert find_circle(graph) is None
    packages = {}
    for name, imported in graph.items():
        package = name.split(".")[0]
        packages.setdefault(package, set()).update({other.split(".")[0] for other in imported} - {package})
    assert find_circle(packages) is None


def test_the_rooms_of_stages_are_few_and_import_each_other_little_and_never_in_a_circle():
    rooms = {}
    for path in modules():
        name = name_of(path)
        if name.startswith("stages."):
            others = {other.split(".")[1] for other in imports_of(path) if other.startswith("stages.")}
            rooms.setdefault(name.split(".")[1], set()).update(others - {name.split(".")[1]})
    assert len(rooms) <= 12
    assert sum(map(len, rooms.values())) <= 25
    assert find_circle(rooms) is None


def test_a_circle_would_be_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def test_init_files_are_empty():
    # The package's own says where kernels are cached before any of them is defined.
    for path in set(PACKAGE.rglob("__init__.py")) - {PACKAGE / "__init__.py"}:
        assert path.read_text() == "", path


def test_every_public_name_has_a_docstring():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert ast.get_docstring(tree), name_of(path)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name_of(path)}.{node.name}"


def test_help_and_completion_load_no_package_that_takes_long():
    code = (
        "import sys, ichkit.cli.main\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'pandas', 'pydantic', 'rich', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_of_predict_loads_no_network_library():
    code = (
        "import sys, ichkit.stages.predict.plan\nprint([m for m in ('torch', 'timm', 'lightgbm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wrong_path_of_predict_is_said_before_a_network_library_is_loaded(tmp_path):
    code = (
        "import sys\nfrom ichkit.cli.main import main\n"
        f"try:\n    main(['predict', {str(tmp_path / 'nowhere')!r}])\n"
        "except SystemExit as end:\n    print(end.code, [m for m in ('torch', 'timm', 'lightgbm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []", done.stderr


@pytest.mark.parametrize("name", shipped_names("configs"))
def test_every_shipped_config_loads_and_says_where_it_comes_from(name):
    config = load_config(name)
    assert config.train.block_size % 2 == 1


def test_the_shipped_names_are_those_of_the_readme():
    assert {"default", "demo", "resnet50-midl"} <= set(shipped_names("configs"))
    assert {"demo", "midl2020"} <= set(shipped_names("pipelines"))


def test_the_paper_config_has_every_number_of_the_paper():
    config = load_config("resnet50-midl")
    assert config.channels.windows == ((40, 80), (75, 215), (600, 2800))
    train = config.train
    assert (train.backbone, train.pretrained, train.block_size, train.batch_blocks) == ("resnet50", "hub", 7, 16)
    assert (train.epochs, train.optimizer, train.learning_rate, train.image_size) == (20, "adam", 5e-4, 512)
    assert train.ema_decay is None
    assert train.cutmix.probability > 0
    assert config.stack.fusion.window == 7

"""What is published: the content of the wheel and of the sdist, and README's links."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from helpers.pages import anchors, links

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/pab-compile/pab_compile"
PAGES = re.compile(re.escape(REPOSITORY) + r"/(blob|tree)/main/([^#]+)")
PICTURES = "https://raw.githubusercontent.com/pab-compile/pab_compile/main/"
IGNORED = (".*", "__pycache__", "*.egg-info", "build", "dist", "out", "outputs")
KEPT = (".ci", ".github", ".gitignore", ".pre-commit-config.yaml")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this tree."""
    tree, out = tmp_path_factory.mktemp("tree") / "source", tmp_path_factory.mktemp("dist")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return shutil.ignore_patterns(*IGNORED)(folder, names) - set(KEPT)

    shutil.copytree(ROOT, tree, ignore=ignored)
    build = "from setuptools import build_meta as b; import sys; o = sys.argv[1]; "
    build += "b.build_sdist(o); b.build_wheel(o)"
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def sources(*folders: str) -> set[str]:
    """Files of folders of this tree, as paths from its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".bak")
    }


def test_the_wheel_holds_the_files_of_both_trees_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    passes = {f"pab_compile/{path}" for path in sources("passes")}
    assert found == sources("pab_compile") | passes, "see [tool.setuptools] in pyproject.toml"


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {ROOT / path for path in sources("pab_compile", "passes")}
    assert [str(f) for f in {f.parent for f in folders} if not (f / "__init__.py").exists()] == []


def test_the_sdist_holds_what_its_make_targets_need(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    needed = sources("pab_compile", "passes", "tests", "examples", "benchmarks", "docs", ".ci")
    needed |= sources("integrations")
    needed |= sources(".github") | {"SECURITY.md", "CITATION.cff", "CONTRIBUTING.md"}
    needed |= {"Makefile", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"}
    assert sorted(needed - found) == [], "see MANIFEST.in"
    assert [name for name in found if name.endswith((".pyc", ".bak"))] == []


def test_the_wheel_says_where_it_comes_from_and_where_it_runs(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(archive.read(name))
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls["Source"] == REPOSITORY
    for label, url in urls.items():
        assert url.startswith(REPOSITORY)
        assert not (page := PAGES.fullmatch(url)) or (ROOT / page[2]).exists(), label
    assert metadata["License-Expression"] == "Apache-2.0"
    versions = [f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)]
    assert set(versions) <= set(metadata.get_all("Classifier", []))


def test_a_wheel_that_is_installed_has_the_backend_and_the_command(
    dist: Path, tmp_path: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--target", str(tmp_path), str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    command = [str(tmp_path / "bin" / "pab"), "doctor", "--no-self-test", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["versions"]["pab_compile"] == version_of_the_project()
    assert facts["torch.compile"]["backend pab"] == "found"


def version_of_the_project() -> str:
    """The version in ``pyproject.toml``."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"$', text, re.M)
    assert found is not None
    return found[1]


def test_the_version_is_the_same_everywhere() -> None:
    version = version_of_the_project()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", changes, re.M)
    assert newest is not None
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert newest[1] == version
    assert f"version: {version}\n" in citation
    assert f'date-released: "{newest[2]}"' in citation


def test_the_workflow_runs_what_the_project_says_it_supports() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r"Python :: (3\.\d+)", project)
    assert f"python: {json.dumps(supported)}" in workflow
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', project)
    assert f'"torch=={oldest}.*"' in workflow
    for command in (".ci/run", "make docs"):
        assert f"run: {command}\n" in workflow


def test_issues_ask_for_the_doctor() -> None:
    for name in ("bug", "model"):
        text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8")
        assert "pab doctor" in text


def wrong_link(is_picture: bool, target: str) -> str | None:
    """What is wrong with a link of README, which is read on the package index too."""
    if target.startswith("#"):
        return None if target[1:] in anchors(ROOT / "README.md") else "no such heading"
    if not target.startswith("https://"):
        return "not absolute"
    if is_picture:
        path = target.removeprefix(PICTURES)
        return None if path == target or (ROOT / path).is_file() else "no such file"
    page, _, heading = target.partition("#")
    if not page.startswith(REPOSITORY) or not (found := PAGES.fullmatch(page)):
        return None
    path = ROOT / found[2]
    if not path.exists():
        return "no such file"
    if path.is_dir() != (found[1] == "tree"):
        return "a folder is under tree/main, a file under blob/main"
    return "no such heading" if heading and heading not in anchors(path) else None


def test_links_of_the_readme_are_absolute_and_lead_somewhere() -> None:
    found = list(links(ROOT / "README.md"))
    assert len(found) > 10
    wrong = {target: why for is_picture, target in found if (why := wrong_link(is_picture, target))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("[a](docs/plans.md)", "not absolute"),
        ("![a](docs/demo.gif)", "not absolute"),
        ('<img src="docs/demo.gif">', "not absolute"),
        ("[![a](docs/demo.gif)](https://example.org)", "not absolute"),
        (f"[a]({REPOSITORY}/blob/main/docs/none.md)", "no such file"),
        (f"![a]({PICTURES}docs/none.gif)", "no such file"),
        (f"[a]({REPOSITORY}/blob/main/docs)", "a folder is under tree/main"),
        (f"[a]({REPOSITORY}/blob/main/docs/plans.md#nowhere)", "no such heading"),
        ("[a](#nowhere)", "no such heading"),
    ],
)
def test_a_wrong_link_is_found(link: str, why: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(link)
    found = [reason for one in links(page) if (reason := wrong_link(*one))]
    assert len(found) == 1
    assert found[0].startswith(why)

"""Packages of two folders and one native module, which CMake builds. Everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str | None:
    """Path of a build tool: beside this Python first, so that a venv need not be activated."""
    return shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )


class CMakeBuild(build_ext):
    """Hands the extension to CMake; an editable install gets it in place, as setuptools does for its own."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build in build_temp; the module lands where setuptools looks for it."""
        import pybind11

        cmake = find_tool("cmake")
        if cmake is None:
            raise RuntimeError(
                "cmake was not found: run `pip install cmake`, or install with build isolation"
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name
        shutil.rmtree(build, ignore_errors=True)
        options = [
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        ninja = find_tool("ninja")
        if ninja is not None:
            options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *options], check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)


setup(
    packages=find_packages("engine") + find_packages("kernels"),
    package_dir={"innervoice": "engine/innervoice", "innervoice_kernels": "kernels/innervoice_kernels"},
    ext_modules=[Extension("innervoice_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

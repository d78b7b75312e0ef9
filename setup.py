# SPDX-License-Identifier: Apache-2.0
"""Two things that pyproject.toml cannot say: the wheel contains the recipes, and the sdist is reproducible."""

import gzip
import os
import shutil
import tarfile
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

RECIPES = Path("training/recipes")


class BuildWithRecipes(build_py):
    """Copies the recipes into the package, where `diffusers_mdm/training/recipe/loading.py` looks for them."""

    def run(self) -> None:
        """Build, and copy; an editable installation finds them in the clone."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "diffusers_mdm", "training", "recipes")
            target.mkdir(parents=True, exist_ok=True)
            for recipe in sorted(RECIPES.glob("*.yaml")):
                shutil.copyfile(recipe, target / recipe.name)


class ReproducibleSdist(sdist):
    """Writes the archive with the times of SOURCE_DATE_EPOCH, without owners, in the order of names."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        """Write the archive; see distutils' `make_archive`."""
        if format != "gztar" or base_dir is None:
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for found in sorted(Path(base_dir).rglob("*")):
                archive.add(found, recursive=False, filter=plain)
        return str(path)


setup(cmdclass={"build_py": BuildWithRecipes, "sdist": ReproducibleSdist})

"""Maps migrations/ into the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["identity", "identity.*"]), "identity.migrations"],
    package_dir={"identity.migrations": "migrations"},
    package_data={
        "identity": ["**/*.j2", "py.typed"],
        "identity.migrations": ["*.mako", "versions/*.py"],
    },
)

"""Names the packages: setuptools cannot discover them across four top-level folders by itself."""

from setuptools import find_packages, setup

OUTSIDE_SRC = ("cli", "conf", "experiments")

setup(
    packages=find_packages("src")
    + [
        f"repro.{package}"
        for room in OUTSIDE_SRC
        for package in find_packages(".", include=[room, f"{room}.*"])
    ],
)

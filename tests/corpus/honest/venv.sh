#!/bin/sh
# needs: python3
# apex: --profile python
# A virtual environment and a package of its own, without a network.
mkdir -p /tmp/pkg/hello && cd /tmp/pkg && echo 'def main(): print("hello")' > hello/__init__.py
printf 'from setuptools import setup\nsetup(name="hello", version="1", packages=["hello"], entry_points={"console_scripts": ["hello=hello:main"]})\n' > setup.py
python3 -m venv --system-site-packages --without-pip /tmp/v && HOME=/tmp PYTHONPATH= /tmp/v/bin/python -m pip install -q --no-index --no-build-isolation --disable-pip-version-check /tmp/pkg && /tmp/v/bin/python -c 'import hello; hello.main()'

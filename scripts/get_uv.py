"""Download uv from PyPI and unpack it: python scripts/get_uv.py FOLDER [VERSION]

Any Python will do, 2.7 included, without pip, venv or any package: it only has to fetch a program that brings the
Python which is needed. Prints the path of the program. Certificates are the system's, proxies those of the environment.
"""

import hashlib
import io
import json
import os
import platform
import sys
import zipfile

try:
    from urllib.parse import urljoin
    from urllib.request import urlopen
except ImportError:  # Python 2
    from urllib2 import urlopen
    from urlparse import urljoin

INDEX = os.environ.get("JUSTRL_PYPI", "https://pypi.org") + "/pypi/uv/{}json"
SECONDS = 60


def wheel(release):
    """Find a release's file for this machine; any Linux of the last ten years takes manylinux2014."""
    machine = platform.machine().lower()
    for file in release["urls"]:
        if file["filename"].endswith("_{}.whl".format(machine)) and "manylinux" in file["filename"]:
            return file
    raise ValueError("uv {} has no build for Linux on {}".format(release["info"]["version"], machine))


def main():
    folder, version = sys.argv[1], sys.argv[2] + "/" if sys.argv[2:] else ""
    index = INDEX.format(version)
    file = wheel(json.loads(urlopen(index, timeout=SECONDS).read().decode()))
    data = urlopen(urljoin(index, file["url"]), timeout=SECONDS).read()  # a mirror's may be relative
    if hashlib.sha256(data).hexdigest() != file["digests"]["sha256"]:
        raise ValueError("{} is damaged; try again".format(file["filename"]))
    archive = zipfile.ZipFile(io.BytesIO(data))
    (name,) = [entry for entry in archive.namelist() if entry.endswith("/scripts/uv")]
    if not os.path.isdir(folder):
        os.makedirs(folder)
    path = os.path.join(folder, "uv")
    with open(path + ".new", "wb") as program:
        program.write(archive.read(name))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)  # a second start sees a whole program or none
    print(path)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # a network fails in many ways, and in other ways in each Python
        sys.exit("get_uv: {}: {}".format(type(error).__name__, str(error).split("\n")[0]))

"""Stand-ins for images that a machine without a registry cannot pull, made of Debian packages.

An image that is there already is used as it is, be it the real one. What is made here bears a label, is kept as an archive below
target/, and loses its name again when the tests have ended: nobody is to take it for the real one.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CACHE = TARGET / "deploy"
LABEL = "berth.standin"

# A change of the recipe makes a new archive.
PACKAGES = {"base": "", "haproxy": "haproxy"}
NOT_IN_SLIM_IMAGES = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists"]
SETTINGS = {
    "base": ["CMD bash", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "haproxy": [
        "USER haproxy",
        "WORKDIR /var/lib/haproxy",
        'CMD ["/usr/sbin/haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]',
    ],
    "etcd": ['CMD ["/usr/local/bin/etcd"]', "EXPOSE 2379 2380"],
}


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


def quiet(*command, **options):
    """Runs a command and shows what it said only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def archive(kind):
    """The file system of a stand-in as a tar archive, made if this machine has none yet."""
    recipe = Path(__file__).read_bytes()
    if kind == "etcd":
        for name in ("etcd", "etcdctl"):
            recipe += hashlib.sha256(Path(shutil.which(name)).read_bytes()).digest()
    file = CACHE / f"{kind}-{hashlib.sha256(recipe).hexdigest()[:16]}.tar"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{kind}-*.tar"):
            old.unlink()
        unfinished = file.with_suffix(".unfinished")
        print(f"making the stand-in {kind} of Debian packages", flush=True)
        if kind == "etcd":
            pack_etcd(unfinished)
        else:
            pack_debian(kind, unfinished)
        unfinished.rename(file)
    return file


def pack_etcd(file):
    """etcd and etcdctl, the C library if they need it, and nothing else: the official image has no shell either."""
    with tarfile.open(file, "w") as tar:
        for folder in ("tmp", "var", "var/lib", "etc"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(info)
        users = b"root:x:0:0:root:/root:/sbin/nologin\n"
        info = tarfile.TarInfo("etc/passwd")
        info.size = len(users)
        tar.addfile(info, io.BytesIO(users))
        libraries = set()
        for name in ("etcd", "etcdctl"):
            program = os.path.realpath(shutil.which(name))
            tar.add(program, f"usr/local/bin/{name}")
            said = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
            libraries.update(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.M))
        for library in sorted(libraries):
            tar.add(os.path.realpath(library), library.lstrip("/"))


def mirror():
    """Where this machine gets Debian bookworm from, if it does; debootstrap knows one itself."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"], capture_output=True, text=True
    ).stdout
    return [line.split()[0] for line in said.splitlines() if line.endswith(" bookworm")][:1]


def pack_debian(kind, file):
    folder = CACHE / "debian"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        quiet("debootstrap", "--variant=minbase", "bookworm", folder, *mirror())
        (folder / ".complete").touch()
    packages = PACKAGES[kind]
    own = folder
    if packages:
        own = CACHE / kind
        shutil.rmtree(own, ignore_errors=True)
        run("cp", "-a", folder, own)
        shutil.copy("/etc/resolv.conf", own / "etc/resolv.conf")
        # Nothing is started by being installed.
        policy = own / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        quiet("chroot", own, "apt-get", "update", env=environment)
        quiet("chroot", own, "apt-get", "install", "-y", "--no-install-recommends", packages, env=environment)
    left_out = [f"--exclude=./{path}/*" for path in [*NOT_IN_SLIM_IMAGES, "dev", "proc", "sys", "tmp"]]
    run("tar", "-C", own, "--exclude=./.complete", *left_out, "-cf", file, ".")
    if packages:
        shutil.rmtree(own)


class Standins:
    """Gives names to stand-ins, and takes them back."""

    def __init__(self, docker):
        self.docker = docker
        self.named = []

    def provide(self, kind, name):
        """Sees to it that there is an image of this name. Whether it is a stand-in."""
        found = subprocess.run(
            [self.docker, "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name],
            capture_output=True,
            text=True,
        )
        if found.returncode == 0 and not found.stdout.strip():
            return False
        file = archive(kind)
        if found.returncode != 0 or found.stdout.strip() != file.stem:
            changes = [f"LABEL {LABEL}={file.stem}", *SETTINGS[kind]]
            quiet(self.docker, "import", *[word for change in changes for word in ("--change", change)], file, name)
        self.named.append(name)
        return True

    def forget(self):
        for name in self.named:
            subprocess.run([self.docker, "image", "rm", "--force", name], capture_output=True)
        self.named = []


def buildkit_docker():
    """A docker client that builds with BuildKit: one with buildx, or one so old that it has BuildKit's client inside."""
    candidates = [os.path.join(folder, "docker") for folder in os.environ["PATH"].split(os.pathsep)] + ["/usr/bin/docker"]
    for docker in candidates:
        if not os.access(docker, os.X_OK):
            continue
        version = subprocess.run([docker, "--version"], capture_output=True, text=True).stdout
        number = re.search(r"version (\d+)", version)
        old = number and 19 <= int(number[1]) < 23
        if old or subprocess.run([docker, "buildx", "version"], capture_output=True).returncode == 0:
            return docker
    return None

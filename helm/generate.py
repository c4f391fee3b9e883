#!/usr/bin/env python3
"""Writes the parts of the chart that come from elsewhere: README.md from the comments of values.yaml, and copies of the dashboards and
alert rules in deploy/ (helm reads no file outside of a chart). With --check nothing is written, and what is not up to date is an error.
Needs PyYAML: target/venv/bin/python helm/generate.py"""

import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "berth"
COPIES = [
    ("deploy/grafana/dashboards", "*.json", "files/dashboards"),
    ("deploy/prometheus", "alerts*.yml", "files/alerts"),
]

HEAD = """# berth

<!-- Written by helm/generate.py from the comments of values.yaml. -->

The MQTT broker Berth as a cluster beside etcd. [docs/kubernetes.md](../../docs/kubernetes.md) says how to install, scale, upgrade and remove
it, and what each of these does to sessions.

```sh
helm install berth ./helm/berth --namespace mqtt --create-namespace
```

Values that contradict each other are refused by `values.schema.json` or with a message that names the value, and so are changes of what
Kubernetes cannot change in place (volume claims, names), and of what would make two clusters of one while brokers run (`cluster.name`, another
etcd, TLS between brokers): where helm installs or upgrades it compares with what runs; `helm template` cannot.

Every option of the broker is set below `config`, as in [docs/configuration.md](../../docs/configuration.md):

```yaml
config:
  limits:
    max_connections: 500000
  session:
    max_expiry: 7d
```
"""


def entries(text):
    """(section, path, comment) of every documented key."""
    section, comment, stack, found = "", None, [], []
    for line in text.splitlines():
        if m := re.match(r"# @section (.*)", line):
            section = m[1]
        elif m := re.match(r"\s*# -- (.*)", line):
            comment = [m[1]]
        elif (m := re.match(r"\s*# ?(.*)", line)) and comment is not None:
            comment.append(m[1])
        elif m := re.match(r"(\s*)([A-Za-z_][A-Za-z0-9_]*):", line):
            indent = len(m[1])
            stack = [(i, k) for i, k in stack if i < indent] + [(indent, m[2])]
            if comment is not None:
                found.append((section, ".".join(k for _, k in stack), " ".join(comment)))
                comment = None
    return found


def leaves(of, before=""):
    for key, value in of.items():
        yield before + key
        if isinstance(value, dict):
            yield from leaves(value, f"{before}{key}.")


def shown(value):
    text = yaml.safe_dump(value, default_flow_style=True, width=10000, sort_keys=False).removesuffix("\n").removesuffix("\n...")
    return f"`{text.replace('|', '&#124;')}`"


def readme():
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    documented = entries(text)
    names = {path for _, path, _ in documented}
    covered = lambda path: any(path == n or path.startswith(n + ".") or n.startswith(path + ".") for n in names)
    missing = [path for path in leaves(defaults) if not covered(path)]
    if missing:
        sys.exit(f"values.yaml says nothing of: {', '.join(missing)}")
    out, last = [HEAD], None
    for section, path, comment in documented:
        if section != last:
            out.append(f"\n## {section}\n\n| value | default | what it does |\n|---|---|---|\n")
            last = section
        value = defaults
        for part in path.split("."):
            value = value[part]
        out.append(f"| `{path}` | {shown(value)} | {comment.replace('|', '&#124;')} |\n")
    return "".join(out)


def wanted():
    """Path -> content of everything that is generated, and folders that hold nothing else."""
    files, folders = {CHART / "README.md": readme()}, []
    for source, pattern, target in COPIES:
        originals = sorted((ROOT / source).glob(pattern))
        if originals:
            folders.append(CHART / target)
        files |= {CHART / target / f.name: f.read_text() for f in originals}
    return files, folders


def main():
    files, folders = wanted()
    stale = [p for p, text in files.items() if not p.exists() or p.read_text() != text]
    surplus = [p for f in folders if f.exists() for p in f.iterdir() if p not in files]
    if "--check" in sys.argv[1:]:
        if stale or surplus:
            names = ", ".join(str(p.relative_to(ROOT)) for p in stale + surplus)
            sys.exit(f"not up to date: {names}; run helm/generate.py")
        return
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    for path in surplus:
        path.unlink()


main()

"""What the tests of the chart share: helm, rendered manifests, value sets, pods as the rendered chart describes them."""

import os
import pathlib
import re
import subprocess

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "helm" / "berth"
VALUES = sorted((HERE / "values").glob("*.yaml"))
REFUSED = sorted((HERE / "refused").glob("*.yaml"))
NAMESPACE, RELEASE = "mqtt", "berth"


def tool(variable, *names):
    """The program that the environment variable names; scripts/test sets them all."""
    path = os.environ.get(variable)
    if not path:
        raise SystemExit(f"{variable} must name {' or '.join(names)}: see check_chart in scripts/test")
    return path


HELM4 = tool("BERTH_HELM4", "helm 4")
HELM3 = tool("BERTH_HELM3", "helm 3")
KUBECTL = tool("BERTH_KUBECTL", "kubectl")
BERTH = tool("BERTH_BINARY", "the broker's binary")


def run(command, check=True, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def template(helm, *files, release=RELEASE, namespace=NAMESPACE, sets=(), check=True, **more):
    """helm template; what it prints, and what it complains of."""
    args = [helm, "template", release, CHART, "-n", namespace, "--kube-version", more.pop("kube", "1.37.0")]
    for file in files:
        args += ["-f", file]
    for one in sets:
        args += ["--set-json", one]
    return run(args, check=check)


def documents(text):
    # Numbers as they stand: a checksum or a mode must not be read as something else.
    return [d for d in yaml.safe_load_all(text) if d]


def render(*files, helm=None, **kwargs):
    return Manifests(documents(template(helm or HELM4, *files, **kwargs).stdout))


def values(path):
    return yaml.safe_load(pathlib.Path(path).read_text()) or {}


class Manifests(list):
    """Rendered objects."""

    def of(self, kind):
        return [o for o in self if o["kind"] == kind]

    def get(self, kind, name):
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
        return found[0]

    def component(self, kind, component):
        found = [o for o in self.of(kind) if labels(o)["app.kubernetes.io/component"] == component]
        return found

    def brokers(self):
        return self.component("StatefulSet", "broker")[0]

    def etcd(self):
        found = self.component("StatefulSet", "etcd")
        return found[0] if found else None

    def pods(self):
        """(component, labels, spec) of every pod that the release makes."""
        for o in self:
            if o["kind"] == "StatefulSet":
                t = o["spec"]["template"]
            elif o["kind"] == "CronJob":
                t = o["spec"]["jobTemplate"]["spec"]["template"]
            elif o["kind"] == "Pod":
                t = o
            else:
                continue
            yield labels(t)["app.kubernetes.io/component"], labels(t), t["spec"]


def labels(o):
    return o["metadata"].get("labels", {})


def matches(selector, of):
    return all(of.get(k) == v for k, v in selector.items())


def container(spec, name):
    return next(c for c in spec["containers"] + spec.get("initContainers", []) if c["name"] == name)


def seconds(duration):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(int(n) * units[u] for n, u in re.findall(r"(\d+)(ms|s|m|h)", duration))


def size_bytes(quantity):
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", quantity).groups()
    powers = {"": 1, **{f"{c}i": 1024 ** (i + 1) for i, c in enumerate("KMGTP")}, **{c: 1000 ** (i + 1) for i, c in enumerate("kMGTP")}}
    return float(number) * powers[unit]


def environment(spec, name, pod, pod_labels, annotations, ip="10.1.2.3", secrets=None):
    """The environment of a container as kubelet makes it: variables of the pod, and $(NAME) of those before."""
    env = {}
    for entry in container(spec, name).get("env", []):
        if "value" in entry:
            env[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), entry["value"])
            continue
        source = entry["valueFrom"]
        if "secretKeyRef" in source:
            ref = source["secretKeyRef"]
            env[entry["name"]] = (secrets or {})[ref["name"]][ref["key"]]
            continue
        env[entry["name"]] = field(source["fieldRef"]["fieldPath"], pod, pod_labels, annotations, ip)
    return env


def field(path, pod, pod_labels, annotations, ip):
    """The downward API: a label or annotation that is not there is empty."""
    if path == "metadata.name":
        return pod
    if path == "status.podIP":
        return ip
    where, key = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path).groups()
    return {"labels": pod_labels, "annotations": annotations}[where].get(key, "")


def config_file(manifests):
    """The configuration file as the brokers' pods see it: (path, text)."""
    template = manifests.brokers()["spec"]["template"]
    volume = next(v for v in template["spec"]["volumes"] if v["name"] == "config")
    item = volume["downwardAPI"]["items"][0]
    mount = next(m for m in container(template["spec"], "berth")["volumeMounts"] if m["name"] == "config")
    text = field(item["fieldRef"]["fieldPath"], "", {}, template["metadata"]["annotations"], "")
    return f"{mount['mountPath']}/{item['path']}", text

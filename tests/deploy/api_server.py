"""A stand-in for a Kubernetes API server, as much of one as helm and kubectl need to install, ask, change and remove a release.

It keeps objects, checks what the real one refuses to change in a StatefulSet, and does what the StatefulSet controller does with the
names of pods and volume claims. Nothing runs in its pods. What only a real one shows: admission, defaults, scheduling, server-side apply
with several managers, roll-outs over time."""

import base64
import copy
import http.server
import json
import re
import threading
import time
import urllib.parse

import yaml

RESOURCES = [
    # group, version, plural, kind, namespaced
    ("", "v1", "namespaces", "Namespace", False),
    ("", "v1", "pods", "Pod", True),
    ("", "v1", "services", "Service", True),
    ("", "v1", "serviceaccounts", "ServiceAccount", True),
    ("", "v1", "secrets", "Secret", True),
    ("", "v1", "configmaps", "ConfigMap", True),
    ("", "v1", "events", "Event", True),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True),
    ("apps", "v1", "statefulsets", "StatefulSet", True),
    ("apps", "v1", "controllerrevisions", "ControllerRevision", True),
    ("batch", "v1", "cronjobs", "CronJob", True),
    ("batch", "v1", "jobs", "Job", True),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True),
    ("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor", True),
    ("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor", True),
    ("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule", True),
]
SHORT = {"persistentvolumeclaims": ["pvc"], "statefulsets": ["sts"], "services": ["svc"], "pods": ["po"], "poddisruptionbudgets": ["pdb"]}
# What the real server lets an update of a StatefulSet change.
MUTABLE = {
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
}


class Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message}


def merge(into, patch):
    """JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    out = dict(into) if isinstance(into, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def selected(selector, fields, o):
    of = o["metadata"].get("labels", {})
    for term in filter(None, re.split(r",(?![^(]*\))", selector)):
        m = re.fullmatch(r"([^=!\s]+)\s*(==?|!=)\s*(.*)", term)
        if m:
            if (of.get(m[1]) == m[3]) != (m[2] != "!="):
                return False
        elif m := re.fullmatch(r"(\S+) in \((.*)\)", term):
            if of.get(m[1]) not in m[2].split(","):
                return False
        elif term not in of:
            return False
    for term in filter(None, fields.split(",")):
        path, wanted = term.split("=", 1)
        at = o
        for part in path.split("."):
            at = at.get(part, {}) if isinstance(at, dict) else {}
        if at != wanted:
            return False
    return True


def protobuf(data):
    """Number -> values of the fields of one message; nested messages as bytes."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            value = varint()
        else:
            assert tag & 7 == 2, "the messages here have numbers and texts only"
            length = varint()
            value, at = data[at:at + length], at + length
        found.setdefault(tag >> 3, []).append(value)
    return found


def object_of(data):
    """A Secret or a Namespace as a typed client sends it: helm speaks protobuf for its own records, and JSON for what it installs."""
    assert data[:4] == b"k8s\0"
    envelope = protobuf(data[4:])
    kind = protobuf(envelope[1][0])[2][0].decode()
    assert kind in ("Secret", "Namespace"), kind
    sent = protobuf(envelope[2][0])
    meta = protobuf(sent[1][0])

    def table(entries):
        return {protobuf(e)[1][0].decode(): protobuf(e).get(2, [b""])[0] for e in entries}

    def texts(entries):
        return {k: v.decode() for k, v in table(entries).items()}

    o = {"apiVersion": "v1", "metadata": {"name": meta[1][0].decode(), "labels": texts(meta.get(11, [])), "annotations": texts(meta.get(12, []))}}
    if kind == "Secret":
        o["type"] = sent[3][0].decode()
        o["data"] = {k: base64.b64encode(v).decode() for k, v in table(sent.get(2, [])).items()}
    return o


def canonical(quantity):
    """As the real server writes quantities: with the largest unit that needs no fraction."""
    m = re.fullmatch(r"(\d+)([KMGT])i", quantity)
    if m and m[2] != "T" and int(m[1]) % 1024 == 0:
        return canonical(f"{int(m[1]) // 1024}{'KMGT'['KMGT'.index(m[2]) + 1]}i")
    return quantity


class Store:
    def __init__(self):
        self.lock = threading.Condition()
        self.objects = {}
        self.events = []
        self.revision = 100

    def put(self, key, o, kind):
        self.revision += 1
        old = self.objects.get(key)
        meta = o["metadata"]
        meta["resourceVersion"] = str(self.revision)
        meta["uid"] = (old or {}).get("metadata", {}).get("uid") or f"00000000-0000-4000-8000-{self.revision:012d}"
        meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        changed = not old or {k: v for k, v in old.items() if k not in ("status", "metadata")} != {k: v for k, v in o.items() if k not in ("status", "metadata")}
        meta["generation"] = (old or {"metadata": {"generation": 0}})["metadata"].get("generation", 1) + bool(changed)
        o["kind"] = kind
        self.objects[key] = o
        self.events.append((self.revision, "MODIFIED" if old else "ADDED", key, copy.deepcopy(o)))
        self.lock.notify_all()
        return o

    def drop(self, key):
        self.revision += 1
        o = self.objects.pop(key)
        o["metadata"]["resourceVersion"] = str(self.revision)
        self.events.append((self.revision, "DELETED", key, copy.deepcopy(o)))
        self.lock.notify_all()
        return o

    def normalize(self, key, o):
        claims = o["spec"].get("volumeClaimTemplates", []) if key[1] == "statefulsets" else [o] if key[1] == "persistentvolumeclaims" else []
        for claim in claims:
            requests = claim["spec"]["resources"]["requests"]
            requests["storage"] = canonical(requests["storage"])

    def check_update(self, key, old, new):
        if key[1] != "statefulsets":
            return
        for name in set(old["spec"]) | set(new["spec"]):
            if name not in MUTABLE and old["spec"].get(name) != new["spec"].get(name):
                raise Refused(
                    422, "Invalid",
                    f'StatefulSet.apps "{key[3]}" is invalid: spec: Forbidden: updates to statefulset spec for fields other than '
                    f"{', '.join(repr(m) for m in sorted(MUTABLE))} are forbidden ({name})",
                )

    def controllers(self, key, o):
        """What the controllers of the real thing make of an object, at once and without fail."""
        group, plural, namespace, name = key
        if plural == "pods" and not o.get("status"):
            o["status"] = {"phase": "Succeeded" if o["spec"].get("restartPolicy") == "Never" else "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        if plural == "persistentvolumeclaims":
            o["status"] = {"phase": "Bound", "capacity": o["spec"]["resources"]["requests"]}
        if plural != "statefulsets":
            return
        spec, replicas = o["spec"], o["spec"].get("replicas", 1)
        for i in range(replicas):
            pod = {"apiVersion": "v1", "metadata": {**copy.deepcopy(spec["template"]["metadata"]), "name": f"{name}-{i}", "namespace": namespace}, "spec": spec["template"]["spec"], "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": []}}
            pod["metadata"]["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": o["metadata"]["uid"], "controller": True}]
            self.put(("", "pods", namespace, f"{name}-{i}"), pod, "Pod")
            for claim in spec.get("volumeClaimTemplates", []):
                claim_key = ("", "persistentvolumeclaims", namespace, f"{claim['metadata']['name']}-{name}-{i}")
                if claim_key not in self.objects:
                    made = {"apiVersion": "v1", "metadata": {"name": claim_key[3], "namespace": namespace, "labels": dict(spec["selector"]["matchLabels"])}, "spec": copy.deepcopy(claim["spec"]), "status": {"phase": "Bound"}}
                    self.put(claim_key, made, "PersistentVolumeClaim")
        self.without_pods(key, o, replicas, spec.get("persistentVolumeClaimRetentionPolicy", {}).get("whenScaled", "Retain"))
        o["status"] = {
            "observedGeneration": o["metadata"]["generation"], "replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
            "currentReplicas": replicas, "updatedReplicas": replicas, "currentRevision": "r", "updateRevision": "r",
        }

    def without_pods(self, key, o, beyond, claims):
        _, _, namespace, name = key
        for other in list(self.objects):
            m = re.fullmatch(rf"(?:(\w+)-)?{re.escape(name)}-(\d+)", other[3])
            if other[2] == namespace and m and int(m[2]) >= beyond:
                if other[1] == "pods" or (other[1] == "persistentvolumeclaims" and claims == "Delete"):
                    self.drop(other)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers of two writes must not wait for each other.
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def answer(self, body, code=200):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self):
        url = urllib.parse.urlparse(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        kind = (self.headers.get("Content-Type") or "").split(";")[0]
        try:
            if not body or ("protobuf" in kind and self.command == "DELETE"):
                content = None
            elif "protobuf" in kind:
                content = object_of(body)
            else:
                content = yaml.load(body, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if "yaml" in kind else json.loads(body)
            self.route(url.path.strip("/").split("/"), query, content, kind)
        except Refused as refused:
            self.answer(refused.status, refused.status["code"])

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def route(self, parts, query, body, kind):
        if parts == ["version"]:
            return self.answer({"major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64"})
        if parts == ["api"]:
            return self.answer({"kind": "APIVersions", "versions": ["v1"]})
        if parts == ["apis"]:
            groups = sorted({(g, v) for g, v, *_ in RESOURCES if g})
            return self.answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": [
                {"name": g, "versions": [{"groupVersion": f"{g}/{v}", "version": v}], "preferredVersion": {"groupVersion": f"{g}/{v}", "version": v}} for g, v in groups]})
        if parts[:2] == ["openapi", "v3"]:
            return self.answer(self.open_api("/".join(parts[2:])))
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 2 else "", parts[3:])
        mine = [r for r in RESOURCES if r[0] == group and r[1] == version] if parts[0] in ("api", "apis") else []
        if not mine:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if not rest:
            found = [
                {"name": p, "singularName": k.lower(), "namespaced": n, "kind": k, "shortNames": SHORT.get(p, []), "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                for _, _, p, k, n in mine
            ]
            if group == "apps":
                found.append({"name": "statefulsets/scale", "singularName": "", "namespaced": True, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]})
            return self.answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/{version}".lstrip("/"), "resources": found})
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource = next((r for r in mine if r[2] == rest[0]), None)
        if not resource:
            raise Refused(404, "NotFound", f"no resource {rest[0]} here")
        name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        with self.server.store.lock:
            self.server.calls.append((self.command, rest[0], name))
        self.serve(resource, namespace, name, sub, query, body, kind)

    @staticmethod
    def open_api(of):
        """Nothing but that the server validates fields itself, which is what clients look for."""
        roots = {(f"apis/{g}/{v}" if g else f"api/{v}"): (g, v) for g, v, *_ in RESOURCES}
        if not of:
            return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in roots}}
        group, version = roots[of]
        paths = {}
        for g, v, plural, kind, _ in RESOURCES:
            if (g, v) == (group, version):
                operation = {
                    "x-kubernetes-group-version-kind": {"group": g, "version": v, "kind": kind}, "responses": {},
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                }
                paths[f"/{of}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": operation}
        return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}

    def serve(self, resource, namespace, name, sub, query, body, kind):
        group, version, plural, of_kind, _ = resource
        store = self.server.store
        key = (group, plural, namespace, name)
        missing = Refused(404, "NotFound", f'{plural} "{name}" not found')
        if self.command == "GET" and not name:
            return self.list(resource, namespace, query)
        with store.lock:
            if self.command == "POST":
                o = copy.deepcopy(body)
                name = o["metadata"].setdefault("name", name)
                key = (group, plural, namespace, name)
                if key in store.objects:
                    raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
                if namespace:
                    o["metadata"]["namespace"] = namespace
                return self.keep(key, o, of_kind, query, 201)
            if key not in store.objects:
                if self.command == "PATCH" and kind == "application/apply-patch+yaml":
                    body["metadata"].setdefault("namespace", namespace)
                    return self.keep(key, body, of_kind, query, 201)
                raise missing
            old = store.objects[key]
            if self.command == "GET":
                if sub == "log":
                    return self.answer(f"log of {name}\n")
                return self.answer(self.scale_of(old) if sub == "scale" else old)
            if self.command == "DELETE":
                store.drop(key)
                if plural == "statefulsets":
                    # With the objects that it owns, unless they are to be orphaned.
                    if (body or {}).get("propagationPolicy") != "Orphan":
                        keep = old["spec"].get("persistentVolumeClaimRetentionPolicy", {}).get("whenDeleted", "Retain")
                        store.without_pods(key, old, 0, keep)
                return self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"name": name, "kind": plural}})
            if sub == "scale":
                new = copy.deepcopy(old)
                new["spec"]["replicas"] = body["spec"]["replicas"]
                self.keep(key, new, of_kind, query, None)
                return self.answer(self.scale_of(store.objects[key]))
            if self.command == "PUT" or kind == "application/apply-patch+yaml":
                new = copy.deepcopy(body)
                new["metadata"].setdefault("namespace", namespace)
            else:
                new = merge(old, body)
            new.setdefault("status", old.get("status", {}))
            store.normalize(key, new)
            store.check_update(key, old, new)
            return self.keep(key, new, of_kind, query, 200)

    @staticmethod
    def scale_of(o):
        meta = {k: o["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": {"replicas": o["spec"]["replicas"]}, "status": {"replicas": o["spec"]["replicas"]}}

    def keep(self, key, o, of_kind, query, code):
        store = self.server.store
        if query.get("dryRun"):
            o["kind"] = of_kind
            return self.answer(o, code)
        store.normalize(key, o)
        store.put(key, o, of_kind)
        store.controllers(key, o)
        if code:
            self.answer(o, code)
        return None

    def list(self, resource, namespace, query):
        group, version, plural, of_kind, _ = resource
        store, wanted = self.server.store, (query.get("labelSelector", ""), query.get("fieldSelector", ""))

        def mine(key, o):
            return key[:2] == (group, plural) and (not namespace or key[2] == namespace) and selected(*wanted, o)

        api_version = f"{group}/{version}".lstrip("/")
        if query.get("watch") not in ("true", "1"):
            with store.lock:
                items = [{"apiVersion": api_version, **o} for k, o in sorted(store.objects.items()) if mine(k, o)]
                return self.answer({"kind": f"{of_kind}List", "apiVersion": api_version, "metadata": {"resourceVersion": str(store.revision)}, "items": items})
        # A stream of events: what is there if no revision is given, then what comes, until the client has had enough.
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = int(query.get("resourceVersion") or 0)
        until = time.monotonic() + float(query.get("timeoutSeconds", 60))
        with store.lock:
            if since == 0:
                first = [("ADDED", o) for k, o in sorted(store.objects.items()) if mine(k, o)]
                if query.get("sendInitialEvents") == "true":
                    mark = {"kind": of_kind, "apiVersion": api_version, "metadata": {"resourceVersion": str(store.revision), "annotations": {"k8s.io/initial-events-end": "true"}}}
                    first.append(("BOOKMARK", mark))
                since = store.revision
            else:
                first = []
        send = first
        while True:
            for what, o in send:
                line = json.dumps({"type": what, "object": {"apiVersion": api_version, **o}}).encode() + b"\n"
                try:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.flush()
                except OSError:
                    return None
            with store.lock:
                if store.revision <= since:
                    store.lock.wait(1)
                send = [(what, o) for revision, what, k, o in store.events if revision > since and mine(k, o)]
                since = store.revision
            if self.server.stopping or time.monotonic() > until:
                self.close_connection = True
                return None


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.store, self.stopping, self.calls = Store(), False, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kubeconfig(self):
        return yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "tester"}}],
            "users": [{"name": "tester", "user": {}}],
        })

    def names(self, plural, namespace):
        with self.store.lock:
            return sorted(k[3] for k in self.store.objects if k[1] == plural and k[2] == namespace)

    def get(self, group, plural, namespace, name):
        with self.store.lock:
            return copy.deepcopy(self.store.objects.get((group, plural, namespace, name)))

    def stop(self):
        self.stopping = True
        self.shutdown()
        self.server_close()

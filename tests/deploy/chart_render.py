"""The chart as helm renders it: valid for Kubernetes, consistent in itself, and taken by the broker."""

import copy
import functools
import json
import pathlib
import re
import sys
import tempfile
import unittest

import jsonschema
import kubernetes_validate
import yaml

from chart_common import (
    BERTH, CHART, HELM3, HELM4, HERE, NAMESPACE, REFUSED, RELEASE, ROOT, VALUES, Manifests, config_file, container,
    documents, environment, labels, matches, render, run, seconds, size_bytes, template, values,
)
from policies import Cluster

# The oldest version that Chart.yaml admits, and the newest of which there are schemas here.
KUBERNETES = ("1.27", "1.37")


@functools.lru_cache(None)
def text_of(path, helm):
    return template(helm, path).stdout


@functools.lru_cache(None)
def parsed(path):
    return documents(text_of(path, HELM4))


def set_of(path):
    """Fresh objects each time: tests may change them."""
    return Manifests(copy.deepcopy(parsed(path)))


def named(name):
    return set_of(HERE / "values" / f"{name}.yaml")


def for_each_set(test):
    """Calls a test with each file in values/ and what it renders to."""

    @functools.wraps(test)
    def all_sets(self):
        for path in VALUES:
            with self.subTest(values=path.stem):
                test(self, path, set_of(path))

    return all_sets


class EverySet(unittest.TestCase):
    """What holds for each file in values/."""

    def test_there_are_ten_sets_and_more(self):
        self.assertGreaterEqual(len(VALUES), 10)

    def test_helm_lints_without_a_warning(self):
        for helm in (HELM3, HELM4):
            for path in VALUES:
                with self.subTest(helm=helm, values=path.stem):
                    run([helm, "lint", "--strict", CHART, "-f", path])

    @for_each_set
    def test_both_helms_render_the_same(self, path, manifests):
        self.assertEqual(list(manifests), documents(text_of(path, HELM3)))

    @for_each_set
    def test_kubernetes_takes_every_object(self, path, manifests):
        for o in manifests:
            for version in KUBERNETES:
                with self.subTest(kind=o["kind"], name=o["metadata"]["name"], version=version):
                    validate(o, version)

    @for_each_set
    def test_names_are_dns_labels_and_each_there_once(self, path, manifests):
        seen = set()
        for o in manifests:
            name, kind = o["metadata"]["name"], o["kind"]
            self.assertRegex(name, r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
            self.assertIn("namespace", o["metadata"], f"{kind}/{name}")
            self.assertNotIn((kind, name), seen)
            seen.add((kind, name))

    @for_each_set
    def test_selectors_find_the_pods_that_they_mean(self, path, manifests):
        pods = list(manifests.pods())
        for o in manifests:
            kind, spec = o["kind"], o.get("spec", {})
            if kind in ("StatefulSet", "PodDisruptionBudget", "PodMonitor"):
                selector = spec["selector"]["matchLabels"]
            elif kind == "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
            elif kind == "Service":
                selector = spec["selector"]
            else:
                continue
            found = [c for c, of, _ in pods if matches(selector, of)]
            if kind == "NetworkPolicy" and labels(o)["app.kubernetes.io/component"] == "test" and not manifests.of("Pod"):
                continue
            self.assertEqual(found, [labels(o)["app.kubernetes.io/component"]], f"{kind}/{o['metadata']['name']}")

    @for_each_set
    def test_nothing_that_changes_with_a_version_is_in_a_selector_or_a_claim(self, path, manifests):
        for o in manifests.of("StatefulSet"):
            fixed = json.dumps([o["spec"]["selector"], o["spec"].get("volumeClaimTemplates", []), o["spec"]["serviceName"]])
            for word in ("helm.sh/chart", "app.kubernetes.io/version", "team"):
                self.assertNotIn(word, fixed)

    @for_each_set
    def test_ports_of_services_probes_and_monitors_exist(self, path, manifests):
        ports = {c: {p["name"]: p["containerPort"] for x in spec["containers"] for p in x.get("ports", [])} for c, _, spec in manifests.pods()}
        for service in manifests.of("Service"):
            of = labels(service)["app.kubernetes.io/component"]
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], ports[of], service["metadata"]["name"])
                if service["spec"].get("clusterIP") == "None":
                    self.assertEqual(port["port"], ports[of][port["targetPort"]], "headless Services do not translate ports")
        for component, _, spec in manifests.pods():
            for c in spec["containers"]:
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    if probe in c:
                        self.assertIn(c[probe]["httpGet"]["port"], ports[component])
        for monitor in manifests.of("ServiceMonitor"):
            found = [s for s in manifests.of("Service") if matches(monitor["spec"]["selector"]["matchLabels"], labels(s))]
            self.assertEqual(len(found), 1)
            self.assertIn(monitor["spec"]["endpoints"][0]["port"], [p["name"] for p in found[0]["spec"]["ports"]])
        for monitor in manifests.of("PodMonitor"):
            of = labels(monitor)["app.kubernetes.io/component"]
            self.assertIn(monitor["spec"]["podMetricsEndpoints"][0]["port"], ports[of])

    @for_each_set
    def test_the_broker_takes_its_configuration(self, path, manifests):
        """What the init container runs, with the file and the environment that it gets, before Kubernetes does."""
        done = config_check(manifests)
        self.assertEqual(done.returncode, 0, done.stderr)

    @for_each_set
    def test_the_broker_listens_where_the_chart_says(self, path, manifests):
        template = manifests.brokers()["spec"]["template"]
        ports = {p["name"]: p["containerPort"] for p in container(template["spec"], "berth")["ports"]}
        config = yaml.safe_load(config_file(manifests)[1])
        env = broker_env(manifests)
        addresses = config["listeners"]["tcp"]["address"]
        addresses = addresses if isinstance(addresses, list) else [addresses]
        self.assertEqual([int(a.rsplit(":", 1)[1]) for a in addresses], [p for n, p in ports.items() if n.startswith("mqtt")])
        # The image's own environment must not win over the file.
        self.assertEqual(env["BERTH__LISTENERS__TCP__ADDRESS"], ",".join(addresses))
        self.assertEqual(env["BERTH__HTTP__ADDRESS"], config["http"]["address"])
        self.assertEqual(env["BERTH__STORAGE__DIR"], config["storage"]["dir"])
        self.assertIn(config["storage"]["dir"], [m["mountPath"] for m in container(template["spec"], "berth")["volumeMounts"] if m["name"] == "data"])
        self.assertEqual(int(config["http"]["address"].rsplit(":", 1)[1]), ports["http"])
        scheme = "https" if "cert_file" in config["http"] else "http"
        self.assertEqual(env["BERTH_URL"], f"{scheme}://localhost:{ports['http']}")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            of = container(template["spec"], "berth")[probe]["httpGet"]
            self.assertEqual(of.get("scheme", "HTTP"), scheme.upper(), probe)
        monitors = [m["spec"]["endpoints"][0] for m in manifests.of("ServiceMonitor") if labels(m)["app.kubernetes.io/component"] == "broker"]
        monitors += [m["spec"]["podMetricsEndpoints"][0] for m in manifests.of("PodMonitor") if labels(m)["app.kubernetes.io/component"] == "broker"]
        for monitor in monitors:
            self.assertEqual(monitor.get("scheme", "http"), scheme)
        if scheme == "https":
            mounts = {m["mountPath"] for m in container(template["spec"], "berth")["volumeMounts"]}
            files = [config["http"][o] for o in ("cert_file", "key_file", "admin_token_file", "read_token_file") if o in config["http"]]
            for file in files + [env["BERTH_CA_FILE"]] + [env[v] for v in ("BERTH_TOKEN_FILE",) if v in env]:
                self.assertIn(file.rsplit("/", 1)[0], mounts)
        if "cluster" in config:
            self.assertEqual(int(config["cluster"]["peer_address"].rsplit(":", 1)[1]), ports["peer"])
            self.assertEqual(env["BERTH__CLUSTER__PEER_ADDRESS"], config["cluster"]["peer_address"])
            image = re.findall(r"(?m)^(?:ENV| ) +(BERTH__\w+)=", (ROOT / "deploy/Dockerfile").read_text())
            self.assertGreaterEqual(len(image), 3)
            self.assertEqual(set(image) - set(env), set(), "the image sets it, and would win over the file")

    @for_each_set
    def test_addresses_are_names_that_the_headless_services_give(self, path, manifests):
        config = yaml.safe_load(config_file(manifests)[1])
        if "cluster" not in config:
            return
        domain = values(path).get("clusterDomain", "cluster.local")
        brokers = manifests.brokers()
        peer = config["cluster"]["peer_address"].rsplit(":", 1)[1]
        name = brokers["metadata"]["name"]
        self.assertEqual(
            broker_env(manifests)["BERTH__CLUSTER__ADVERTISE_PEER"],
            f"{name}-0.{brokers['spec']['serviceName']}.{NAMESPACE}.svc.{domain}:{peer}",
        )
        services = [s["metadata"]["name"] for s in manifests.of("Service") if s["spec"].get("publishNotReadyAddresses")]
        self.assertIn(brokers["spec"]["serviceName"], services)
        etcd = manifests.etcd()
        if not etcd:
            return
        self.assertIn(etcd["spec"]["serviceName"], services)
        names = [f"{etcd['metadata']['name']}-{i}" for i in range(etcd["spec"]["replicas"])]
        hosts = [f"{n}.{etcd['spec']['serviceName']}.{NAMESPACE}.svc.{domain}" for n in names]
        args = etcd_args(manifests)
        client, peers = args["listen-client-urls"].split(":")[0], args["listen-peer-urls"].split(":")[0]
        self.assertEqual(config["etcd"]["endpoints"], [f"{client}://{h}:2379" for h in hosts])
        self.assertEqual(args["initial-cluster"], ",".join(f"{n}={peers}://{h}:2380" for n, h in zip(names, hosts)))
        self.assertEqual(args["initial-advertise-peer-urls"], f"{peers}://$(POD_NAME).{etcd['spec']['serviceName']}.{NAMESPACE}.svc.{domain}:2380")

    @for_each_set
    def test_pods_outlive_their_drain(self, path, manifests):
        spec = manifests.brokers()["spec"]["template"]["spec"]
        drain = seconds(yaml.safe_load(config_file(manifests)[1])["shutdown"]["timeout"])
        # 3 s for etcd, 1 s each for clients, HTTP and peers, and the journal's last commit.
        self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], drain + 15)
        self.assertEqual(container(spec, "berth")["lifecycle"]["preStop"]["exec"]["command"], ["berth", "ctl", "node", "drain", "--wait"])

    @for_each_set
    def test_an_etcd_outage_restarts_nobody(self, path, manifests):
        """/ready depends on etcd, /health does not (src/server/http); /health of etcd needs a quorum, /metrics does not."""
        broker = container(manifests.brokers()["spec"]["template"]["spec"], "berth")
        self.assertEqual(broker["startupProbe"]["httpGet"]["path"], "/health")
        self.assertEqual(broker["livenessProbe"]["httpGet"]["path"], "/health")
        self.assertEqual(broker["readinessProbe"]["httpGet"]["path"], "/ready")
        patience = broker["livenessProbe"]["periodSeconds"] * broker["livenessProbe"]["failureThreshold"]
        idle = re.search(r"HTTP_IDLE_MAX: Duration = Duration::from_secs\((\d+)\)", (ROOT / "src/server/http/bounded.rs").read_text())
        self.assertGreater(patience, int(idle[1]), "idle connections may occupy admin HTTP for so long")
        self.assertNotEqual(broker["startupProbe"], broker["livenessProbe"])
        if manifests.etcd():
            member = container(manifests.etcd()["spec"]["template"]["spec"], "etcd")
            self.assertEqual(member["livenessProbe"]["httpGet"], {"path": "/metrics", "port": "metrics"})
            self.assertEqual(member["readinessProbe"]["httpGet"], {"path": "/health", "port": "metrics"})

    @for_each_set
    def test_no_pod_violates_the_restricted_standard(self, path, manifests):
        for component, _, spec in manifests.pods():
            self.assertEqual(violations(spec), [], component)

    @for_each_set
    def test_root_file_systems_are_read_only_and_nobody_has_a_token(self, path, manifests):
        for _, _, spec in manifests.pods():
            self.assertFalse(spec["automountServiceAccountToken"])
            self.assertFalse(spec["enableServiceLinks"])
            for c in spec["containers"] + spec.get("initContainers", []):
                if c["name"] not in ("beside", "before"):
                    self.assertTrue(c["securityContext"]["readOnlyRootFilesystem"], c["name"])
        self.assertEqual([o["kind"] for o in manifests if "Role" in o["kind"]], [])

    @for_each_set
    def test_nothing_needs_a_shell(self, path, manifests):
        ours = {"berth", "/usr/local/bin/etcd", "/usr/local/bin/etcdctl", "mosquitto_pub", "mosquitto_sub"}
        for _, _, spec in manifests.pods():
            for c in spec["containers"] + spec.get("initContainers", []):
                if c["name"] in ("beside", "before"):
                    continue
                words = c["command"] + c.get("args", []) + c.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
                self.assertIn(words[0], ours)
                self.assertFalse({"sh", "bash", "/bin/sh", "-c"} & (set(words) - set(c["command"] if words[0].startswith("mosquitto") else [])))

    @for_each_set
    def test_etcd_is_bounded_and_its_database_fits_its_volume(self, path, manifests):
        etcd = manifests.etcd()
        if not etcd:
            return
        args = etcd_args(manifests)
        self.assertEqual(args["auto-compaction-mode"], "periodic")
        self.assertGreater(seconds(args["auto-compaction-retention"]), 0)
        quota = int(args["quota-backend-bytes"])
        for claim in etcd["spec"].get("volumeClaimTemplates", []):
            size = size_bytes(claim["spec"]["resources"]["requests"]["storage"])
            self.assertGreaterEqual(size, 1.8 * quota, "a defragmentation writes the database once more")

    @for_each_set
    def test_volumes_stay_unless_asked_otherwise(self, path, manifests):
        for o in manifests.of("StatefulSet"):
            asked = values(path).get("persistence", {})
            if o["spec"].get("volumeClaimTemplates") and not ("whenDeleted" in asked or "whenScaled" in asked):
                self.assertEqual(o["spec"]["persistentVolumeClaimRetentionPolicy"], {"whenDeleted": "Retain", "whenScaled": "Retain"})
            self.assertEqual(o["spec"]["podManagementPolicy"], "Parallel")

    @for_each_set
    def test_every_volume_that_is_mounted_is_there(self, path, manifests):
        for o in manifests.of("StatefulSet") + manifests.of("CronJob"):
            spec = o["spec"].get("template", o["spec"].get("jobTemplate", {}).get("spec", {}).get("template"))["spec"]
            there = {v["name"] for v in spec.get("volumes", [])} | {c["metadata"]["name"] for c in o["spec"].get("volumeClaimTemplates", [])}
            mounted = {m["name"] for c in spec["containers"] + spec.get("initContainers", []) for m in c.get("volumeMounts", [])}
            self.assertEqual(mounted - there, set())
            self.assertEqual(there - mounted, set(), "a volume that nobody mounts")


class Refused(unittest.TestCase):
    """Mistakes, each in a file of refused/ that says which message they get."""

    def test_each_with_its_message(self):
        for path in REFUSED:
            wanted = re.match(r"# refused: (.*)\n", path.read_text())[1]
            for helm in (HELM3, HELM4):
                with self.subTest(values=path.stem, helm=helm):
                    done = template(helm, path, check=False)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertRegex(done.stderr, wanted)

    def test_an_unknown_key_is_refused_wherever_it_stands(self):
        """Into every object of values.yaml that is not free by its nature, one key more is put."""
        schema = json.loads((CHART / "values.schema.json").read_text())
        defaults = values(CHART / "values.yaml")
        jsonschema.Draft7Validator.check_schema(schema)
        judge = jsonschema.Draft7Validator(schema)
        judge.validate(defaults)
        free = {"config", "global"}
        free |= {p for p in paths(defaults) if re.search(r"(^|\.)(labels|.*[aA]nnotations|nodeSelector|commonLabels|podLabels|affinity|.*[sS]ecurityContext|requests|limits|httpGet)(\.|$)", p)}
        tried = 0
        for path in paths(defaults):
            if any(path == f or path.startswith(f + ".") for f in free):
                continue
            broken = copy.deepcopy(defaults)
            at = broken
            for part in path.split("."):
                at = at[part]
            if not isinstance(at, dict):
                continue
            at["misspelled"] = 1
            tried += 1
            self.assertFalse(judge.is_valid(broken), path)
        self.assertGreater(tried, 25)
        self.assertFalse(judge.is_valid({**defaults, "misspelled": 1}))
        self.assertTrue(judge.is_valid({**defaults, "global": {"anything": {"at": "all"}}, "enabled": True}))

    def test_every_value_has_a_type(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        for path in paths(values(CHART / "values.yaml")):
            at = schema
            for part in path.split("."):
                if "$ref" in at:
                    at = schema["definitions"][at["$ref"].rsplit("/", 1)[1]]
                if "properties" not in at:
                    break
                at = at["properties"][part]
            self.assertTrue(at.keys() & {"type", "enum", "$ref"}, path)

    def test_a_bad_option_of_the_broker_fails_in_the_init_container(self):
        """It passes helm, for helm knows nothing of the broker's options, and ends the init container with a message."""
        for config, message in [
            ({"limits": {"max_conections": 5}}, r"limits\.max_conections: unknown option; did you mean limits\.max_connections"),
            ({"limits": {"max_qos": 3}}, r'limits\.max_qos = "3"'),
            ({"cluster": {"lease": "soon"}}, r'cluster\.lease = "soon"'),
            ({"log": {"format": "xml"}}, r'log\.format = "xml"'),
        ]:
            manifests = render(sets=[f"config={json.dumps(config)}"])
            done = config_check(manifests)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, message)
            init = container(manifests.brokers()["spec"]["template"]["spec"], "config-check")
            self.assertEqual(init["terminationMessagePolicy"], "FallbackToLogsOnError", "so that kubectl describe shows it")


class Details(unittest.TestCase):
    """What single sets must and must not contain."""

    def test_the_config_is_merged_over_what_the_chart_sets(self):
        config = yaml.safe_load(config_file(named("large"))[1])
        self.assertEqual(config["limits"]["max_connections"], 1000000)
        self.assertEqual(config["session"]["max_sessions"], 1000000000)
        self.assertEqual(config["cluster"]["max_held_bytes"], "1GiB")
        self.assertTrue(config["cluster"]["enabled"])
        self.assertEqual(config["shutdown"]["timeout"], "300s")
        # Numbers must not come out as 1e+09.
        self.assertIn("max_sessions: 1000000000\n", config_file(named("large"))[1])

    def test_every_option_of_the_broker_can_be_set_or_has_a_value_of_its_own(self):
        keys = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.M)
        self.assertGreater(len(keys), 60)
        guards = (CHART / "templates/_guards.tpl").read_text()
        config, put = {}, []
        for key in keys:
            parts = key.split(".")
            owned = f'"{key}" "' in guards or f'"{".".join(parts[:-1])}" "' in guards
            # other-ports.yaml sets these three.
            if owned or key in ("listeners.tcp.address", "http.address", "storage.dir"):
                continue
            put.append(key)
            at = config
            for part in parts[:-1]:
                at = at.setdefault(part, {})
            at[parts[-1]] = "nonsense"
        self.assertGreater(len(put), 40)
        done = config_check(render(sets=[f"config={json.dumps(config)}"]))
        self.assertEqual(done.returncode, 2)
        self.assertNotIn("unknown option", done.stderr)
        # The broker complains of each but those for which any text is right: so each has reached it.
        reached = re.findall(r'^ *([a-z_.]+) = "nonsense"', done.stderr, re.M)
        self.assertGreater(len(reached), 35)
        self.assertEqual(set(reached) - set(put), set())

    def test_changed_config_changes_the_pods_and_nothing_else_does(self):
        def template_of(*sets):
            return render(sets=sets).brokers()["spec"]["template"]

        plain = template_of()
        changed = template_of('config={"limits": {"max_qos": 1}}')
        self.assertNotEqual(plain["metadata"]["annotations"]["checksum/config"], changed["metadata"]["annotations"]["checksum/config"])
        self.assertEqual(plain["spec"], changed["spec"])
        self.assertEqual(plain, template_of("replicaCount=5", 'updateStrategy={"partition": 2}', 'service={"type": "NodePort"}'))

    def test_a_new_chart_version_alone_restarts_nobody(self):
        with tempfile.TemporaryDirectory() as dir:
            run(["cp", "-r", CHART, dir])
            chart = pathlib.Path(dir, "berth", "Chart.yaml")
            chart.write_text(re.sub(r"(?m)^version: .*", "version: 99.0.0", chart.read_text()))
            newer = Manifests(documents(run([HELM4, "template", RELEASE, f"{dir}/berth", "-n", NAMESPACE, "--kube-version", "1.37.0"]).stdout))
        self.assertIn("berth-99.0.0", json.dumps(newer))
        for kind in ("brokers", "etcd"):
            self.assertEqual(getattr(newer, kind)()["spec"], getattr(named("defaults"), kind)()["spec"])

    def test_two_releases_never_share_a_cluster(self):
        names = {}
        for namespace, release in [("a", "b"), ("a", "b-c"), ("a-b", "c"), ("x" * 63, "berth"), ("x" * 63, "y" * 53), ("x" * 63, "y" * 52 + "z")]:
            config = yaml.safe_load(config_file(render(release=release, namespace=namespace))[1])
            name = config["cluster"]["name"]
            self.assertLessEqual(len(name), 64)
            self.assertNotIn(name, names)
            names[name] = (namespace, release)
        self.assertIn("a.b", names)

    def test_long_names_are_cut_where_kubernetes_takes_them(self):
        manifests = render(HERE / "values" / "existing-secrets.yaml", release="r" * 53)
        for o in manifests:
            limit = 52 if o["kind"] == "CronJob" else 63
            self.assertLessEqual(len(o["metadata"]["name"]), limit)
        for o in manifests.of("StatefulSet"):
            # The label controller-revision-hash: the name and eleven characters.
            self.assertLessEqual(len(o["metadata"]["name"]) + 11, 63)

    def test_clients_are_told_an_address_or_what_the_values_say(self):
        self.assertEqual(broker_env(named("defaults"))["BERTH__CLUSTER__ADVERTISE_MQTT"], "none")
        self.assertEqual(broker_env(named("nodeport"))["BERTH__CLUSTER__ADVERTISE_MQTT"], "berth-0.mqtt.example.org:31883")
        self.assertEqual(broker_env(named("everything"))["BERTH__CLUSTER__ADVERTISE_MQTT"], "plant-0.mqtt.example.org:1883")

    def test_the_zone_comes_from_the_label_of_the_pod_or_from_the_values(self):
        self.assertEqual(broker_env(named("defaults"))["BERTH__CLUSTER__ZONE"], "")
        self.assertEqual(broker_env(named("defaults"), {"topology.kubernetes.io/zone": "z1"})["BERTH__CLUSTER__ZONE"], "z1")
        self.assertEqual(broker_env(named("everything"), {"topology.kubernetes.io/zone": "z1"})["BERTH__CLUSTER__ZONE"], "cellar")

    def test_secrets_are_mounted_where_the_config_looks(self):
        for name in ("external-etcd-tls", "existing-secrets"):
            manifests = named(name)
            spec = manifests.brokers()["spec"]["template"]["spec"]
            mounts = {m["mountPath"] for m in container(spec, "berth")["volumeMounts"]}
            files = re.findall(r"(?:ca|cert|key|password)_file: (\S+)/[^/\s]+", config_file(manifests)[1])
            self.assertTrue(files)
            self.assertEqual(set(files) - mounts, set())
        config = yaml.safe_load(config_file(named("external-etcd-tls"))[1])["etcd"]
        self.assertEqual(config["cert_file"], "/run/secrets/berth/etcd-tls/client.pem")
        self.assertEqual(broker_env(named("external-etcd-tls"))["BERTH__ETCD__USERNAME"], "the-user")
        self.assertNotIn("the-password", config_file(named("external-etcd-tls"))[1])

    def test_minimal_and_single_have_nothing_that_they_need_not(self):
        kinds = sorted(o["kind"] for o in named("minimal"))
        self.assertEqual(kinds, ["Service", "Service", "Service", "StatefulSet", "StatefulSet"])
        config = yaml.safe_load(config_file(named("single-broker"))[1])
        self.assertNotIn("cluster", config)
        self.assertNotIn("etcd", config)

    def test_a_partition_and_placement_reach_the_pods(self):
        spec = named("everything").brokers()["spec"]
        self.assertEqual(spec["updateStrategy"]["rollingUpdate"]["partition"], 3)
        self.assertEqual(spec["minReadySeconds"], 30)
        pod = spec["template"]["spec"]
        self.assertIn(RELEASE, json.dumps(pod["affinity"]))
        self.assertEqual((pod["priorityClassName"], pod["nodeSelector"], len(pod["tolerations"])), ("high", {"disk": "fast"}, 1))
        for spread in named("large").brokers()["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            self.assertTrue(matches(spread["labelSelector"]["matchLabels"], labels(named("large").brokers()["spec"]["template"])))
        self.assertIn("requiredDuringSchedulingIgnoredDuringExecution", pod_anti(named("large")))
        self.assertIn("preferredDuringSchedulingIgnoredDuringExecution", pod_anti(named("defaults")))
        images = {c["image"] for _, _, s in named("everything").pods() for c in s["containers"] + s.get("initContainers", [])}
        self.assertEqual({i for i in images if not i.startswith(("mirror.example.org/", "example.org/"))}, set())

    def test_every_value_is_used_by_a_template(self):
        text = "".join(p.read_text() for p in (CHART / "templates").rglob("*") if p.is_file())
        for path in paths(values(CHART / "values.yaml")):
            if re.search(r"(Probe|ecurityContext|resources|updateStrategy|topologySpreadConstraints|dnsTo|dashboards\.labels)\.", path) and "updateStrategy" not in path:
                continue
            self.assertRegex(text, rf"\.{path.split('.')[-1]}\b", path)

    def test_readme_is_what_values_yaml_says(self):
        run([sys.executable, ROOT / "helm/generate.py", "--check"])

    def test_alerts_and_dashboards_of_the_chart_reach_kubernetes(self):
        manifests = named("monitoring")
        groups = manifests.of("PrometheusRule")[0]["spec"]["groups"]
        files = sorted((CHART / "files/alerts").glob("*.y*ml"))
        shipped = [g for f in files for g in yaml.safe_load(f.read_text())["groups"]]
        self.assertGreater(sum(len(g["rules"]) for g in shipped), 5)
        self.assertEqual(groups[-1]["name"], "ours")
        base = values(HERE / "values/monitoring.yaml")["metrics"]["prometheusRule"]["runbookBase"]
        for group in shipped:
            for rule in group["rules"]:
                if "annotations" in rule:
                    rule["annotations"]["runbook_url"] = base + rule["annotations"]["runbook_url"]
        self.assertEqual(groups[:-1], shipped)
        boards = manifests.of("ConfigMap")[0]["data"]
        files = {f.name: json.loads(f.read_text()) for f in (CHART / "files/dashboards").glob("*.json")}
        self.assertGreater(len(files), 1)
        self.assertEqual({name: json.loads(text) for name, text in boards.items()}, files)


class Policies(unittest.TestCase):
    """NetworkPolicy, judged as a network plug-in would: who may open which port of whom."""

    OTHERS = {
        "client": ({"app": "client"}, {"clients": "mqtt"}),
        "stranger": ({"app": "stranger"}, {"kubernetes.io/metadata.name": "elsewhere"}),
        "prometheus": ({"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"}),
        "dns": ({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}),
    }

    def allowed(self, manifests):
        pods = {c: (of, {"kubernetes.io/metadata.name": NAMESPACE}, NAMESPACE) for c, of, _ in manifests.pods()}
        pods |= {n: (of, ns, ns.get("kubernetes.io/metadata.name", n)) for n, (of, ns) in self.OTHERS.items()}
        return Cluster(manifests.of("NetworkPolicy"), pods, NAMESPACE).open_ports()

    def test_with_everything_exactly_this_is_open(self):
        found = self.allowed(named("everything"))
        # To and from pods that have no policy of their own, only what concerns the release.
        ours = {"broker", "etcd", "etcd-defrag", "test"}
        self.assertEqual(
            {(a, b, p) for a, b, p in found if a in ours or b in ours},
            {
                ("client", "broker", 1883), ("test", "broker", 1883),
                ("broker", "broker", 7949), ("broker", "etcd", 2379), ("etcd-defrag", "etcd", 2379), ("etcd", "etcd", 2380),
                ("prometheus", "broker", 8081), ("prometheus", "etcd", 2381),
                ("broker", "169.254.20.10", 53), ("etcd", "169.254.20.10", 53), ("etcd-defrag", "169.254.20.10", 53), ("test", "169.254.20.10", 53),
            },
        )

    def test_by_default_everybody_may_be_a_client_and_nobody_reads_metrics(self):
        found = self.allowed(render(sets=['networkPolicy={"enabled": true}']))
        to = {(a, p) for a, b, p in found if b == "broker"}
        self.assertEqual({a for a, p in to if p == 1883}, {"broker", "client", "stranger", "prometheus", "dns", "test"} - {"broker"})
        self.assertEqual({(a, p) for a, p in to if p != 1883}, {("broker", 7948)})
        self.assertEqual({(a, p) for a, b, p in found if b == "etcd"}, {("broker", 2379), ("etcd", 2380)})
        self.assertIn(("broker", "dns", 53), found)

    def test_brokers_reach_the_external_etcd_at_its_ports_and_no_other_address(self):
        found = self.allowed(named("external-etcd-tls"))
        self.assertEqual({(b, p) for a, b, p in found if a == "broker" and p != 53}, {("broker", 7948), ("192.0.2.1", 2379), ("192.0.2.1", 32379)})
        plain = named("external-etcd-plain").component("NetworkPolicy", "broker")[0]
        self.assertIn({"ports": [{"port": 2379}]}, plain["spec"]["egress"])

    def test_listeners_elsewhere_are_open_and_a_single_broker_calls_nobody(self):
        found = self.allowed(named("other-ports"))
        self.assertEqual({p for a, b, p in found if (a, b) == ("client", "broker")}, {2883, 3883})
        self.assertEqual({p for a, b, p in found if (a, b) == ("broker", "broker")}, {9948})
        single = self.allowed(named("single-broker"))
        self.assertEqual({b for a, b, _ in single if a == "broker"}, set())


def validate(o, version):
    if o["apiVersion"].startswith("monitoring.coreos.com/"):
        schema = json.loads((HERE / "schemas" / f"{o['kind'].lower()}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(o)
    else:
        kubernetes_validate.validate(o, version, strict=True)


def broker_env(manifests, pod_labels=None, component="berth"):
    template = manifests.brokers()["spec"]["template"]
    secrets = {"berth-etcd-user": {"username": "the-user", "password": "the-password"}}
    return environment(
        template["spec"], component, f"{manifests.brokers()['metadata']['name']}-0", pod_labels or labels(template), template["metadata"]["annotations"], secrets=secrets
    )


def config_check(manifests):
    """Runs the command of the init container as its pod would."""
    spec = manifests.brokers()["spec"]["template"]["spec"]
    command = container(spec, "config-check")["command"]
    assert command[0] == "berth"
    _, text = config_file(manifests)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        env = {**broker_env(manifests, component="config-check"), "BERTH_CONFIG": file.name}
        return run([BERTH, *command[1:]], check=False, env=env)


def etcd_args(manifests):
    args = container(manifests.etcd()["spec"]["template"]["spec"], "etcd")["args"]
    return dict(a.removeprefix("--").split("=", 1) for a in args)


def pod_anti(manifests):
    return json.dumps(manifests.brokers()["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"])


def paths(of, before=""):
    for key, value in of.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}.")


def violations(spec):
    """Pod security standard, level restricted, as far as fields of pods go that exist (Kubernetes 1.37)."""
    found = []
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(flag):
            found.append(flag)
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec.get("volumes", []):
        if not (volume.keys() - {"name"}) <= kinds:
            found.append(f"volume {volume['name']}")
    pod = spec.get("securityContext", {})
    if pod.get("sysctls") or pod.get("windowsOptions", {}).get("hostProcess"):
        found.append("sysctls or hostProcess")
    for c in spec["containers"] + spec.get("initContainers", []) + spec.get("ephemeralContainers", []):
        own = c.get("securityContext", {})

        def effective(key):
            return own.get(key, pod.get(key))

        capabilities = own.get("capabilities", {})
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": "ALL" in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": effective("runAsNonRoot") is True,
            "runAsUser": effective("runAsUser") != 0,
            "seccompProfile": (effective("seccompProfile") or {}).get("type") in ("RuntimeDefault", "Localhost"),
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any(p.get("hostPort") for p in c.get("ports", [])),
            "seLinuxOptions": not own.get("seLinuxOptions") and not pod.get("seLinuxOptions"),
            "appArmorProfile": not own.get("appArmorProfile") and not pod.get("appArmorProfile"),
        }
        found += [f"{c['name']}: {name}" for name, ok in checks.items() if not ok]
    return found


class Standard(unittest.TestCase):
    """The judge of the restricted standard sees what it must see."""

    def test_each_loosened_field_is_seen(self):
        spec = named("defaults").brokers()["spec"]["template"]["spec"]
        self.assertEqual(violations(spec), [])
        for change in (
            lambda s: s.update(hostNetwork=True),
            lambda s: s["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
            lambda s: s["securityContext"].pop("seccompProfile"),
            lambda s: s["securityContext"].update(runAsNonRoot=False),
            lambda s: s["containers"][0]["securityContext"].update(runAsUser=0),
            lambda s: s["containers"][0]["securityContext"].update(privileged=True),
            lambda s: s["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
            lambda s: s["initContainers"][0]["securityContext"]["capabilities"].update(drop=[]),
            lambda s: s["initContainers"][0]["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
            lambda s: s["containers"][0]["ports"][0].update(hostPort=1883),
        ):
            broken = copy.deepcopy(spec)
            change(broken)
            self.assertNotEqual(violations(broken), [])


if __name__ == "__main__":
    unittest.main()

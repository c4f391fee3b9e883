"""What a release goes through: helm and kubectl against a stand-in for the API server. All commands of docs/kubernetes.md, in their order,
and changes that must be refused."""

import os
import pathlib
import re
import shlex
import tempfile
import unittest

import api_server
from chart_common import HELM3, HELM4, HERE, KUBECTL, ROOT, run

PAGE = ROOT / "docs" / "kubernetes.md"
# What runs in a cluster of real brokers and members instead: chart_run.py.
ELSEWHERE = re.compile(r"^(kubectl .* exec |kubectl .* port-forward |etcdctl |mosquitto_(pub|sub) )")


def commands():
    """The commands of the page, in their order."""
    found = []
    for block in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```", PAGE.read_text()):
        found += [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.strip().startswith("#")]
    return found


class Release(unittest.TestCase):
    helm = HELM4

    def setUp(self):
        self.server = api_server.Server()
        self.addCleanup(self.server.stop)
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.dir / "kubeconfig").write_text(self.server.kubeconfig())
        tools = self.dir / "tools"
        tools.mkdir()
        (tools / "helm").symlink_to(self.helm)
        (tools / "kubectl").symlink_to(KUBECTL)
        self.env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(self.dir), "KUBECONFIG": str(self.dir / "kubeconfig")}

    def sh(self, command, check=True, cwd=ROOT):
        return run(shlex.split(command), check=check, cwd=cwd, env=self.env)

    def install(self, *sets, file="defaults"):
        self.sh(f"helm install berth helm/berth -n mqtt --create-namespace -f {HERE}/values/{file}.yaml" + "".join(f" --set {s}" for s in sets))

    def upgrade(self, *sets, check=True, more="--reuse-values"):
        return self.sh(f"helm upgrade berth helm/berth -n mqtt {more}" + "".join(f" --set {shlex.quote(s)}" for s in sets), check=check)

    def refused(self, message, *sets):
        done = self.upgrade(*sets, check=False)
        self.assertNotEqual(done.returncode, 0, sets)
        self.assertRegex(done.stderr, message)

    def brokers(self, name="berth"):
        return self.server.get("apps", "statefulsets", "mqtt", name)

    def names(self, plural):
        return self.server.names(plural, "mqtt")


class Page(Release):
    def test_its_commands_work_in_their_order(self):
        self.assertGreater(len(commands()), 30)
        for file in ("ca.crt", "client.crt", "client.key", "admin-tokens"):
            (self.dir / file).write_text("a certificate, or a token")
        seen = []
        for command in commands():
            with self.subTest(command=command):
                if ELSEWHERE.match(command):
                    self.there_is_what_it_names(command)
                    continue
                where = self.dir if "--from-file" in command else ROOT
                done = self.sh(command, cwd=where, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                seen.append(command)
                self.after(command)
        # Fails when a step is no longer told.
        for told in ("helm install", "helm upgrade", "helm rollback", "helm uninstall", "helm test", "kubectl -n mqtt delete pvc"):
            self.assertTrue([c for c in seen if c.startswith(told)], told)

    def there_is_what_it_names(self, command):
        words = shlex.split(command)
        if "exec" in words:
            pod = self.server.get("", "pods", "mqtt", words[words.index("exec") + 1])
            self.assertTrue(pod, command)
            if "-c" in words[:words.index("--")]:
                self.assertIn(words[words.index("-c") + 1], [c["name"] for c in pod["spec"]["containers"]])
        elif "port-forward" in words:
            service = self.server.get("", "services", "mqtt", words[-2].removeprefix("service/"))
            self.assertTrue(service, command)
            self.assertIn(int(words[-1].split(":")[1]), [p["port"] for p in service["spec"]["ports"]])

    def after(self, command):
        """What the page promises of some commands."""
        def brokers(n):
            self.assertEqual([p for p in self.names("pods") if re.fullmatch(r"berth-\d", p)], [f"berth-{i}" for i in range(n)])

        if m := re.search(r"replicaCount=(\d)", command):
            brokers(int(m[1]))
            self.assertIn("data-berth-2", self.names("persistentvolumeclaims"), "volumes outlive their pods")
        if "delete pvc data-berth-3" in command:
            self.assertNotIn("data-berth-3", self.names("persistentvolumeclaims"))
        if "max_expiry" in command:
            self.assertIn("max_expiry: 7d", self.brokers()["spec"]["template"]["metadata"]["annotations"]["berth/config"])
        if command == "helm rollback berth -n mqtt":
            self.assertNotIn("max_expiry", self.brokers()["spec"]["template"]["metadata"]["annotations"]["berth/config"])
        if "partition=2" in command:
            self.assertEqual(self.brokers()["spec"]["updateStrategy"]["rollingUpdate"]["partition"], 2)
        if command.startswith("helm uninstall"):
            self.assertEqual((self.names("statefulsets"), self.names("pods")[:-1]), ([], []))
            self.assertIn("data-berth-0", self.names("persistentvolumeclaims"))
        if command == "kubectl -n mqtt delete pvc -l app.kubernetes.io/instance=berth":
            self.assertEqual(self.names("persistentvolumeclaims"), [])
        if "persistence.size=20Gi" in command:
            claims = self.brokers()["spec"]["volumeClaimTemplates"]
            self.assertEqual(claims[0]["spec"]["resources"]["requests"]["storage"], "20Gi")
            self.assertEqual(self.server.get("", "persistentvolumeclaims", "mqtt", "data-berth-0")["spec"]["resources"]["requests"]["storage"], "20Gi")
            brokers(3)
        if "etcd.enabled=false" in command:
            self.assertEqual(self.names("statefulsets"), ["berth"])
            self.assertIn("data-berth-etcd-0", self.names("persistentvolumeclaims"))
            config = self.brokers()["spec"]["template"]["metadata"]["annotations"]["berth/config"]
            self.assertIn("https://etcd.example.org:2379", config)
            self.assertIn("name: mqtt.berth", config)

    def test_no_link_of_the_page_leads_nowhere(self):
        text = PAGE.read_text()
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
            page = (PAGE.parent / target) if target else PAGE
            self.assertTrue(page.exists(), target)
            if anchor:
                heads = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)", page.read_text())}
                self.assertIn(anchor, heads, target)


class Changes(Release):
    """What can be changed and what is refused, with the messages."""

    def test_what_kubernetes_cannot_change_is_refused_and_says_so(self):
        self.install()
        claims = "Kubernetes does not change the volume claims of a StatefulSet; docs/kubernetes.md"
        self.refused(f"StatefulSet berth: persistence.size is 8Gi and cannot become 9Gi: {claims}", "persistence.size=9Gi")
        self.refused(f"persistence.storageClass .*cannot become .*fast.*: {claims}", "persistence.storageClass=fast")
        self.refused(f"persistence.storageClass .*cannot become .*fast.*: {claims}", "global.storageClass=fast")
        self.refused(f"persistence.accessModes is ReadWriteOnce and cannot become ReadWriteMany: {claims}", "persistence.accessModes={ReadWriteMany}")
        self.refused(f"persistence.enabled.* is true and cannot become false: {claims}", "persistence.enabled=false")
        self.refused(f"persistence.annotations is .*: {claims}", "persistence.annotations.a=b")
        self.refused(f"berth-etcd .etcd.: persistence.size is 10Gi and cannot become 20Gi: {claims}", "etcd.persistence.size=20Gi")
        self.refused("its selector is .* cannot become .*: Kubernetes does not change it; give nameOverride", "nameOverride=other,fullnameOverride=berth")
        self.refused("etcd.replicas is 3 and cannot become 5: etcd's members must be added and removed by etcdctl", "etcd.replicas=5")
        self.refused("etcd.tls.peer is false and cannot become true", "etcd.tls.peer.existingSecret=x")
        # The same number of bytes is the same size.
        self.upgrade("persistence.size=8192Mi", check=True)

    def test_the_server_would_refuse_what_the_chart_refuses(self):
        """Else the guards would guard nothing."""
        self.install()
        rendered = self.sh("helm template berth helm/berth -n mqtt --set persistence.size=9Gi").stdout
        (self.dir / "new.yaml").write_text(rendered)
        done = self.sh(f"kubectl apply -n mqtt --server-side --force-conflicts -f {self.dir}/new.yaml", check=False)
        self.assertIn("updates to statefulset spec for fields other than", done.stderr)

    def test_running_brokers_are_not_split_into_two_clusters(self):
        self.install()
        why = "would be two clusters for the time of the roll-out; stop all brokers first"
        external = ("etcd.enabled=false", "externalEtcd.endpoints={http://etcd.example.org:2379}")
        self.refused(f"berth/cluster is /berth/mqtt.berth and cannot become /berth/other: .*{why}", "cluster.name=other")
        self.refused(f"berth/cluster is .*{why}", "externalEtcd.prefix=/other")
        self.refused(f"berth/etcd is bundled and cannot become external: .*{why}", *external)
        self.refused(f"berth/peer-tls is false and cannot become true: .*{why}", "peers.tls.existingSecret=x")
        self.upgrade("replicaCount=0")
        self.upgrade("replicaCount=3", "cluster.name=other", "peers.tls.existingSecret=x", *external)
        self.assertEqual(self.names("statefulsets"), ["berth"])

    def test_everything_else_can_be_changed(self):
        """From each value set to the next one, as far as they have the same names and volumes."""
        self.install()
        for name in ("monitoring", "nodeport", "loadbalancer", "pod-monitor", "other-ports", "defaults"):
            done = self.upgrade(more=f"--reset-values -f {HERE}/values/{name}.yaml", check=False)
            self.assertEqual(done.returncode, 0, f"{name}: {done.stderr}")

    def test_a_changed_secret_restarts_the_pods_and_a_rotated_password_does_not(self):
        self.sh("kubectl create namespace mqtt")
        for name in ("etcd-server", "etcd-client", "etcd-peer", "berth-peers"):
            self.sh(f"kubectl -n mqtt create secret generic {name} --from-literal=tls.crt=1")
        self.install(file="existing-secrets")
        before = {n: self.brokers(n)["spec"]["template"] for n in ("berth", "berth-etcd")}
        self.upgrade()
        self.assertEqual(before, {n: self.brokers(n)["spec"]["template"] for n in before}, "nothing has changed")
        for secret, changed in (("etcd-client", {"berth"}), ("berth-peers", {"berth"}), ("etcd-peer", {"berth-etcd"})):
            self.sh(f"kubectl -n mqtt delete secret {secret}")
            self.sh(f"kubectl -n mqtt create secret generic {secret} --from-literal=tls.crt=2")
            self.upgrade()
            after = {n: self.brokers(n)["spec"]["template"] for n in before}
            self.assertEqual({n for n in before if before[n] != after[n]}, changed, secret)
            before = after

    def test_notes_say_what_to_type_and_warn(self):
        def notes(*sets):
            name = f"r{len(self.names('secrets'))}"
            return self.sh(f"helm install {name} helm/berth -n mqtt --create-namespace" + "".join(f" --set {shlex.quote(s)}" for s in sets)).stdout

        plain = notes()
        for command in re.findall(r"(?m)^  ((?:helm|kubectl) .*)", plain):
            if ELSEWHERE.match(command):
                continue
            done = self.sh(command, check=False)
            self.assertEqual(done.returncode, 0, f"{command}: {done.stderr}")
        self.assertIn("clients need no account. Whoever reaches the MQTT port may connect", plain)
        self.assertNotIn("Service is of type", plain)
        self.assertIn("the Service is of type LoadBalancer: that may be more than this Kubernetes cluster", notes("service.type=LoadBalancer"))
        self.assertIn("nobody can connect", notes("auth.allowAnonymous=false"))
        self.assertIn("takes its acknowledged messages with it", notes("persistence.enabled=false"))
        self.assertIn("The brokers are stopped", notes("replicaCount=0"))


class ChangesWithHelm3(Changes):
    helm = HELM3


del Release
if __name__ == "__main__":
    unittest.main()

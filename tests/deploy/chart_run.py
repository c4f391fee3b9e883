"""Three brokers and three etcd members as the rendered chart says: their commands, environment, configuration file, probes, preStop,
the check of the init container, and the commands of the pod of helm test.

Each pod is a network namespace with the names that the headless Services would give in its /etc/hosts; a further namespace is the node
from which kubelet probes. Needs root. What containers would add (image, user, read-only root) is not seen here."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from chart_common import BERTH, HERE, config_file, container, environment, labels, render
from chart_release import commands

ME = f"berth-chart-{os.getpid()}"


def sh(*command, check=True, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=kwargs.pop("timeout", 90), **kwargs)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def until(what, condition, seconds=60):
    """Waits for a condition; says what was waited for if it does not come true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


class Node:
    """Where the pods are: a bridge in a namespace of its own."""

    def __init__(self):
        self.hosts, self.pods = [], []
        self.space = f"{ME}-node"
        sh("ip", "netns", "add", self.space)
        for command in ("link add br0 type bridge", "addr add 10.93.0.1/24 dev br0", "link set br0 up", "link set lo up"):
            sh("ip", "-n", self.space, *command.split())

    def address(self, names):
        """A new pod's namespace and address; `names` lead there from everywhere."""
        number = len(self.pods) + 10
        space, ip = f"{ME}-{number}", f"10.93.0.{number}"
        sh("ip", "netns", "add", space)
        self.pods.append(space)
        sh("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"v{number}", "netns", self.space)
        sh("ip", "-n", self.space, "link", "set", f"v{number}", "master", "br0", "up")
        for command in (f"addr add {ip}/24 dev eth0", "link set eth0 up", "link set lo up"):
            sh("ip", "-n", space, *command.split())
        self.hosts.append(f"{ip} {' '.join(names)}")
        return space, ip

    def write_hosts(self):
        for space in [*self.pods, self.space]:
            dir = pathlib.Path("/etc/netns", space)
            dir.mkdir(parents=True, exist_ok=True)
            (dir / "hosts").write_text("\n".join(["127.0.0.1 localhost", *self.hosts]) + "\n")

    def remove(self):
        for space in [*self.pods, self.space]:
            sh("ip", "netns", "del", space, check=False)
            shutil.rmtree(pathlib.Path("/etc/netns", space), ignore_errors=True)


class Pod:
    """A pod of a StatefulSet: what kubelet would do with its main container."""

    def __init__(self, node, dir, o, number, service, main):
        self.node, self.main = node, main
        self.name = f"{o['metadata']['name']}-{number}"
        self.template = o["spec"]["template"]
        self.spec = self.template["spec"]
        self.container = container(self.spec, main)
        host = f"{self.name}.{service}.{o['metadata']['namespace']}.svc.cluster.local"
        self.space, self.ip = node.address([host])
        self.dir = pathlib.Path(dir, self.name)
        self.dir.mkdir()
        self.log = open(self.dir / "log", "a")
        self.process = None
        # Where volumes are mounted, and where they are here.
        self.paths = {}
        for mount in self.container["volumeMounts"]:
            self.paths[mount["mountPath"]] = self.dir / mount["name"]
            (self.dir / mount["name"]).mkdir()

    def here(self, text):
        for path, dir in self.paths.items():
            text = re.sub(rf"(?<![\w/]){re.escape(path)}(?=/|\b)", str(dir), text)
        return text

    def env(self, main=None):
        env = environment(self.spec, main or self.main, self.name, labels(self.template), self.template["metadata"].get("annotations", {}), self.ip)
        return {**{k: self.here(v) for k, v in env.items()}, "PATH": os.environ["PATH"]}

    def command(self, words):
        programs = {"berth": BERTH, "/usr/local/bin/etcd": shutil.which("etcd"), "/usr/local/bin/etcdctl": shutil.which("etcdctl")}
        env = self.env()
        words = [re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], w) for w in words]
        return ["ip", "netns", "exec", self.space, str(programs.get(words[0], words[0])), *[self.here(w) for w in words[1:]]]

    def exec(self, *words, check=True, main=None):
        """kubectl exec POD -- words."""
        return sh(*self.command(list(words)), check=check, env=self.env(main))

    def start(self):
        words = self.container["command"] + self.container.get("args", [])
        self.process = subprocess.Popen(self.command(words), env=self.env(), stdout=self.log, stderr=self.log)
        self.began = time.monotonic()

    def probe(self, name):
        """The HTTP status that kubelet gets, from the node; 0 if nobody answers."""
        get = self.container[name]["httpGet"]
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == get["port"])
        url = f"http://{self.ip}:{port}{get['path']}"
        patience = str(self.container[name]["timeoutSeconds"])
        done = sh("ip", "netns", "exec", self.node.space, "curl", "-s", "-m", patience, "-o", self.dir / "body", "-w", "%{http_code}", url, check=False)
        return int(done.stdout or 0)

    def metric(self, name):
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == "http")
        text = sh("ip", "netns", "exec", self.node.space, "curl", "-s", "-m", "5", f"http://{self.ip}:{port}/metrics", check=False).stdout
        found = re.search(rf"(?m)^{name} (\S+)$", text)
        return float(found[1]) if found else None

    def ended(self):
        return self.process is None or self.process.poll() is not None

    def stop(self):
        """What kubelet does: preStop, then SIGTERM if it still runs; within the grace period."""
        began = time.monotonic()
        grace = self.spec["terminationGracePeriodSeconds"]
        hook = self.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        answer = self.exec(*hook, check=False) if hook else None
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(max(1, grace - (time.monotonic() - began)))
        return answer

    def kill(self):
        if not self.ended():
            self.process.kill()
            self.process.wait(20)
        self.log.close()

    def tail(self):
        return f"--- {self.name}\n" + "\n".join((self.dir / "log").read_text().splitlines()[-15:])


class Rendered(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0 or sh("ip", "netns", "add", f"{ME}-try", check=False).returncode:
            if os.environ.get("BERTH_REQUIRE_NETNS") == "0":
                raise unittest.SkipTest("networks cannot be made in namespaces here")
            raise AssertionError("networks cannot be made in namespaces here: BERTH_REQUIRE_NETNS=0 leaves this test out")
        sh("ip", "netns", "del", f"{ME}-try")

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="berth-chart-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.node = Node()
        self.addCleanup(self.node.remove)
        self.pods, self.ran, self.tails = [], set(), []
        self.addCleanup(self.end)

    def end(self):
        self.tails = [p.tail() for p in self.pods]
        for pod in self.pods:
            pod.kill()

    def run(self, result=None):
        """Shows what the processes said last if the test fails."""
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            print("\n".join(self.tails), flush=True)

    def all_of(self, o, main):
        pods = [Pod(self.node, self.dir, o, i, o["spec"]["serviceName"], main) for i in range(o["spec"]["replicas"])]
        self.pods += pods
        return pods

    def ready(self, *pods, seconds=60):
        for pod in pods:
            until(f"{pod.name} is ready", lambda: pod.probe("readinessProbe") == 200 or self.assertFalse(pod.ended(), pod.tail()), seconds)

    def client(self, *words, check=True):
        """A program on the node, with the names of the pods."""
        return sh("ip", "netns", "exec", self.node.space, *words, check=check)

    def test_the_rendered_cluster(self):
        manifests = render()
        members, brokers = self.all_of(manifests.etcd(), "etcd"), self.all_of(manifests.brokers(), "berth")
        self.node.write_hosts()
        path, text = config_file(manifests)
        for broker in brokers:
            pathlib.Path(broker.here(path)).write_text(broker.here(text))

        # The init container.
        for broker in brokers:
            check = container(broker.spec, "config-check")["command"]
            self.assertIn("the configuration is valid", broker.exec(*check, main="config-check").stdout)

        # Brokers wait for etcd: alive, not ready.
        brokers[0].start()
        until("the startup probe answers", lambda: brokers[0].probe("startupProbe") == 200, 20)
        allowed = brokers[0].container["startupProbe"]["periodSeconds"] * brokers[0].container["startupProbe"]["failureThreshold"]
        self.assertLess(time.monotonic() - brokers[0].began, allowed)
        until("not ready without etcd", lambda: brokers[0].probe("readinessProbe") == 503, 20)
        self.assertIn("starting", (brokers[0].dir / "body").read_text())
        self.assertEqual(brokers[0].probe("livenessProbe"), 200)

        # Then all at once, as with parallel pod management.
        for pod in [*members, *brokers[1:]]:
            pod.start()
        for member in members:
            for probe in ("startupProbe", "livenessProbe"):
                until(f"{probe} of {member.name}", lambda: member.probe(probe) == 200)
        self.ready(*members, *brokers)

        self.helm_test(manifests)
        self.documented_commands(members, brokers)
        self.etcd_goes_away(members, brokers)
        self.scale_and_stop(brokers)
        left = {c for c in commands() if " exec " in c or re.match("etcdctl|mosquitto", c)} - self.ran
        self.assertEqual(left, set(), "documented and not run")

    def documented(self, part):
        """The one command of docs/kubernetes.md with this part: what it runs in its pod, and all its words."""
        found = {c for c in commands() if part in c}
        self.assertEqual(len(found), 1, f"docs/kubernetes.md on {part}: {found}")
        self.ran |= found
        words = shlex.split(*found)
        return words[words.index("--") + 1:] if "exec" in words else words, words

    def in_pod(self, part, *instead, patiently=False):
        """Runs it; `instead` are (text, replacement)."""
        command, words = self.documented(part)
        for placeholder, value in instead:
            command = [w.replace(placeholder, value) for w in command]
        pod = next(p for p in self.pods if p.name == words[words.index("exec") + 1])
        if patiently:
            # Some seconds after a change etcd refuses the next one; the page says to repeat it.
            return until(" ".join(command), lambda: (done := pod.exec(*command, check=False)).returncode == 0 and done.stdout)
        return pod.exec(*command).stdout

    def test_everything_with_tls(self):
        """Certificates in secrets, as existing-secrets.yaml names them: between brokers, to etcd with client certificates."""
        # Without accounts and rules: the client of helm test has none.
        open_to_all = [f"{value}=" for value in ("auth.existingSecret", "auth.usersKey", "auth.jwtKey", "acl.existingConfigMap")]
        manifests = render(HERE / "values" / "existing-secrets.yaml", sets=["replicaCount=2", "etcd.replicas=1", *open_to_all])
        (member,), brokers = self.all_of(manifests.etcd(), "etcd"), self.all_of(manifests.brokers(), "berth")
        self.node.write_hosts()
        secrets = pathlib.Path(self.dir, "secrets")
        secrets.mkdir()
        alternatives = ",".join(f"DNS:{n}" for n in ("localhost", "*.berth-headless.mqtt.svc.cluster.local", "*.berth-etcd-headless.mqtt.svc.cluster.local"))
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        sh("openssl", "req", "-x509", *key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt", cwd=secrets)
        sh("openssl", "req", "-new", *key[:-2], "-subj", "/CN=test", "-keyout", "tls.key", "-out", "tls.csr", cwd=secrets)
        (secrets / "extensions").write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
        sh("openssl", "x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", "tls.crt", cwd=secrets)
        mounted = 0
        for pod in self.pods:
            for volume in pod.spec["volumes"]:
                if "secret" in volume:
                    mounted += 1
                    for file in ("ca.crt", "tls.crt", "tls.key"):
                        shutil.copy(secrets / file, pod.dir / volume["name"])
        self.assertEqual(mounted, 2 * 2 + 3)
        path, text = config_file(manifests)
        for broker in brokers:
            pathlib.Path(broker.here(path)).write_text(broker.here(text))
        for pod in self.pods:
            pod.start()
        self.ready(*self.pods)
        self.helm_test(manifests)
        status = brokers[0].exec("berth", "ctl", "cluster", "status").stdout
        self.assertRegex(status, r"berth-1 +\d+ +live +up")
        self.assertIn("etcd https://berth-etcd-0.berth-etcd-headless.mqtt.svc.cluster.local:2379  answers", status)
        # etcdctl in the member's pod has what it needs, and without a certificate nobody gets in.
        self.assertIn("https://", member.exec("etcdctl", "member", "list").stdout)
        bare = self.client("curl", "-s", "--cacert", secrets / "ca.crt", f"https://{member.name}.berth-etcd-headless.mqtt.svc.cluster.local:2379/version", check=False)
        self.assertNotEqual(bare.returncode, 0)

    def helm_test(self, manifests):
        """The containers of the pod of helm test, one after another."""
        (pod,) = manifests.of("Pod")
        steps = pod["spec"]["initContainers"] + pod["spec"]["containers"]
        self.assertEqual([c["name"] for c in steps], ["subscribe", "publish", "receive"])
        said = [self.client(*c["command"]).stdout for c in steps]
        self.assertEqual(said[-1], "helm-test/berth/1 it works\n")
        # And it can fail: nothing more is there to be received.
        patience = [w if w != "30" else "1" for w in steps[-1]["command"]]
        self.assertNotEqual(self.client(*patience, check=False).returncode, 0)

    def documented_commands(self, members, brokers):
        """What docs/kubernetes.md runs in pods, and with a port of a pod forwarded to loopback."""
        lost, in_pod, documented = members[1], self.in_pod, self.documented

        status = in_pod("berth ctl cluster status")
        self.assertIn("cluster mqtt.berth", status)
        for broker in brokers:
            self.assertRegex(status, rf"{broker.name} +\d+ +live")
            self.assertIn(f"{broker.name}.berth-headless.mqtt.svc.cluster.local:7948", status)
            self.assertNotIn(f"{broker.ip}:1883", status)

        self.assertIn("berth-etcd-0.berth-etcd-headless", in_pod("endpoint status"))

        # The port of a Service forwarded to this machine is loopback in a pod of it.
        subscriber, _ = documented("mosquitto_sub")
        publisher, _ = documented("mosquitto_pub")
        waits = subprocess.Popen(["ip", "netns", "exec", brokers[1].space, *subscriber], stdout=subprocess.PIPE, text=True)
        self.addCleanup(waits.stdout.close)
        self.addCleanup(waits.kill)
        until("the subscription is there", lambda: brokers[1].metric("mqtt_subscriptions_active") == 1)
        sh("ip", "netns", "exec", brokers[1].space, *publisher)
        self.assertEqual(waits.communicate(timeout=20)[0], "hello/world hi\n")
        snapshot, _ = documented("snapshot save")
        env = {**os.environ, "ETCDCTL_API": "3"}
        sh("ip", "netns", "exec", members[0].space, *snapshot, cwd=self.dir, env=env)
        self.assertIn("revision", json.loads(sh("etcdctl", "snapshot", "status", "berth.db", "-w", "json", cwd=self.dir, env=env).stdout))

        # The defragmentation, from a pod that has what the members' pods have.
        job = render(sets=['etcd={"defragmentation": {"enabled": true}}']).of("CronJob")[0]
        job = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
        said = members[2].exec(*job["command"], *job["args"])
        self.assertEqual((said.stdout + said.stderr).count("Finished defragmenting"), 3)

        # A member that lost its volume: out of the cluster, in again, started as `existing`.
        lost.kill()
        listed = in_pod("member list")
        identity = re.search(rf"(?m)^(\w+), \w+, {lost.name},", listed)[1]
        in_pod("member remove", ("MEMBER-ID", identity), patiently=True)
        in_pod("member add", patiently=True)
        shutil.rmtree(lost.dir / "data")
        (lost.dir / "data").mkdir()
        lost.container["args"] = container(render(sets=['etcd={"initialClusterState": "existing"}']).etcd()["spec"]["template"]["spec"], "etcd")["args"]
        lost.log = open(lost.dir / "log", "a")
        lost.start()
        self.ready(lost)
        self.assertIn(lost.name, members[0].exec("etcdctl", "member", "list").stdout)

        # A broker that lost its volume.
        broker = brokers[1]
        broker.kill()
        shutil.rmtree(broker.dir / "data")
        (broker.dir / "data").mkdir()
        broker.log = open(broker.dir / "log", "a")
        broker.start()
        self.ready(broker)
        in_pod("cluster forget berth-1")

    def etcd_goes_away(self, members, brokers):
        """An outage of all of etcd restarts nobody, and its members either."""
        for member in members:
            member.process.send_signal(signal.SIGSTOP)
        until("every lease has run out", lambda: all((b.metric("berth_watch_lag_seconds") or 0) > 11 for b in brokers), 60)
        for broker in brokers:
            self.assertEqual((broker.probe("livenessProbe"), broker.probe("readinessProbe")), (200, 200))
        for member in members[1:]:
            member.process.send_signal(signal.SIGCONT)
        members[0].process.send_signal(signal.SIGCONT)
        self.ready(*members, *brokers)
        # Without a majority a member is not ready, and not restarted.
        members[1].process.kill()
        members[2].process.kill()
        until("a member without the others is not ready", lambda: members[0].probe("readinessProbe") == 503, 30)
        self.assertEqual((members[0].probe("livenessProbe"), members[0].probe("startupProbe")), (200, 200))
        for member in members[1:]:
            member.process.wait(20)
            member.start()
        self.ready(*members, *brokers)

    def scale_and_stop(self, brokers):
        """preStop hands sessions over; a stopped cluster comes back with everything."""
        last = brokers[2]
        host = "{}.berth-headless.mqtt.svc.cluster.local".format
        session = ("-V", "5", "-i", "phone", "-c", "-x", "3600", "-q", "1", "-t", "news/#")
        self.client("mosquitto_sub", "-h", host(last.name), *session, "-E")
        self.client("mosquitto_pub", "-V", "5", "-h", host(brokers[0].name), "-q", "1", "-t", "news/today", "-m", "before")
        answer = last.stop()
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertEqual(last.process.returncode, 0)
        shown = brokers[0].exec("berth", "ctl", "sessions", "show", "phone").stdout
        self.assertRegex(shown, r"lives on +berth-[01]@")
        self.assertRegex(shown, r"queued +1\n")
        # Whether the volume of a broker that was scaled away may be deleted.
        owners = self.in_pod("etcdctl get --prefix")
        self.assertRegex(owners, r'"owner":"berth-[01]@')
        self.assertNotIn('"owner":"berth-2@', owners)
        status = ("berth", "ctl", "cluster", "status")
        self.assertIn("waits for its node", brokers[0].exec(*status).stdout)
        self.in_pod("cluster forget berth-3", ("berth-3", "berth-2"))
        self.assertNotIn("waits for its node", brokers[0].exec(*status).stdout)

        # All of them at once, as with replicaCount: 0. The last ones have nobody to hand over to.
        for broker in brokers[:2]:
            broker.process.send_signal(signal.SIGTERM)
        for broker in brokers[:2]:
            broker.process.wait(broker.spec["terminationGracePeriodSeconds"])
        for broker in brokers:
            broker.start()
        self.ready(*brokers)
        received = self.client("mosquitto_sub", "-h", host(last.name), *session, "-C", "1", "-W", "30", "-v")
        self.assertEqual(received.stdout, "news/today before\n")


if __name__ == "__main__":
    unittest.main()

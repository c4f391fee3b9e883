"""A real Prometheus scrapes three real brokers on a real etcd, under load: every expression of alerts and dashboards is asked of it.

The tests run in the order of their names: the last ones break things.
"""

import re
import signal
import subprocess
import threading
import unittest
from pathlib import Path

from machines import DEPLOY, Broker, Etcd, Place, Process, Prometheus, fetch, free_port, mosquitto, python, run, until
from shipped import DASHBOARDS, expressions, filled, metrics_of, queries, rules, values_of, variables

NAMES = ["berth-1", "berth-2", "berth-3"]
# Messages per second of each publisher.
RATE = 20


class Load:
    """Clients on every broker, until they are told to stop: publishers at each QoS, subscribers of all of it on the other nodes, and a
    client whose session moves from node to node."""

    def __init__(self, place: Place, brokers: list[Broker]):
        self.place, self.brokers, self.over = place, brokers, threading.Event()
        self.publishers: list[Process] = []
        for i, broker in enumerate(brokers):
            sub = mosquitto("sub", broker.mqtt, "-V", "5", "-t", "load/#", "-q", "2", "-c", "-x", "3600")
            place.start(f"sub-{i}", [*sub, "-i", f"sub-{i}"])
            place.start(f"group-{i}", mosquitto("sub", broker.mqtt, "-V", "5", "-t", "$share/g/load/#", "-q", "1"))
            place.start(f"will-{i}", mosquitto("sub", broker.mqtt, "-t", "none", "--will-topic", "load/will", "--will-payload", "x"))
            for qos in "012":
                more = ["-r"] if qos == "1" else []
                pub = mosquitto("pub", broker.mqtt, "-V", "5", "-q", qos, "-t", f"load/{i}/{qos}", "-l", *more)
                self.publishers.append(place.start(f"pub-{i}-{qos}", pub, stdin=subprocess.PIPE))
        self.threads = [threading.Thread(target=self.publish), threading.Thread(target=self.move)]
        for thread in self.threads:
            thread.start()

    def publish(self) -> None:
        number = 0
        while not self.over.wait(1 / RATE):
            number += 1
            for publisher in self.publishers:
                try:
                    publisher.child.stdin.write(b"message %d\n" % number)
                    publisher.child.stdin.flush()
                except OSError:
                    # Its broker was killed.
                    pass

    def move(self) -> None:
        turn = 0
        while not self.over.is_set():
            broker = self.brokers[turn % len(self.brokers)]
            turn += 1
            run(mosquitto("sub", broker.mqtt, "-V", "5", "-i", "mover", "-c", "-x", "3600", "-q", "1", "-t", "load/0/1", "-C", "3", "-W", "2"))

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        for publisher in self.publishers:
            try:
                publisher.child.stdin.close()
            except OSError:
                # It had ended with something still to be written.
                pass


place: Place
etcd: Etcd
brokers: list[Broker]
waiting: Broker
full: Broker
prometheus: Prometheus
load: Load


def setUpModule():
    global place, etcd, brokers, waiting, full, prometheus, load
    place = Place()
    unittest.addModuleCleanup(place.close)
    try:
        etcd = Etcd(place)
        # The second runs under the system call filter of the systemd unit, as far as that can be had without systemd.
        confined = python(DEPLOY.parent / "tests/deploy/monitoring/confined.py", DEPLOY / "berth.service")
        brokers = [
            Broker(place, name, "cluster.yaml", etcd.url, before=confined if name == "berth-2" else []) for name in NAMES
        ]
        # One that finds no etcd.
        waiting = Broker(place, "berth-w", "cluster.yaml", f"http://127.0.0.1:{free_port()}")
        # And one by itself, whose journal will be full.
        more = {"storage.type": "memory", "storage.memory_max": "1MiB", "publish.timeout": "1s"}
        full = Broker(place, "berth-f", "single.yaml", **more)
        for broker in [*brokers, full]:
            broker.wait()
        targets = {"berth": [address(b) for b in brokers], "etcd": [etcd.url.removeprefix("http://")], "waiting": [address(waiting)], "full": [address(full)]}
        prometheus = Prometheus(place, targets)
        load = Load(place, brokers)
        unittest.addModuleCleanup(load.stop)
        until("all targets are scraped", lambda: len(prometheus.query("up == 1")) == 6)
    except BaseException:
        print(place.logs())
        raise


def address(broker: Broker) -> str:
    return f"127.0.0.1:{broker.http}"


def found(alert: str, change=lambda expression: expression) -> set[tuple[str, str]]:
    """Job and instance of everything for which the expression of an alert holds now."""
    (rule,) = [rule for rule in rules() if rule["alert"] == alert]
    return {(labels.get("job", ""), labels.get("instance", "")) for labels, _ in prometheus.query(change(rule["expr"]))}


class Live(unittest.TestCase):
    def test_1_every_dashboard_query_has_data(self):
        """That of one node for each of them."""
        asked = 0
        for path in DASHBOARDS:
            nodes = [address(b) for b in brokers] if path.name == "node.json" else [".*"]
            for node in nodes:
                for query in queries(path):
                    expression = filled(query.expression, instance=node, job="berth", etcd="etcd")
                    rows = until(f"data of {query.where}: {expression}", lambda e=expression: prometheus.query(e), 40)
                    asked += 1
                    for label in re.findall(r"{{(\w+)}}", query.legend):
                        self.assertTrue(all(label in labels for labels, _ in rows), f"{query.where}: no label {label}: {rows}")
        self.assertGreater(asked, 250)

    def test_2_variables_have_values(self):
        for path in DASHBOARDS:
            for variable in variables(path):
                if variable["type"] != "query":
                    continue
                metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                series = prometheus.api("series", **{"match[]": filled(metric)})
                values = {one[label] for one in series if label in one}
                # There are no namespaces outside Kubernetes: the variable's "All" then finds what has no such label.
                expected = {"namespace": set(), "job": {"berth", "waiting", "full"}, "etcd": {"etcd"}}.get(variable["name"])
                if variable["name"] == "instance":
                    expected = {address(b) for b in [*brokers, waiting, full]}
                self.assertEqual(values, expected, f"{path.name}: {variable['name']}")
                self.assertTrue(series)

    def test_3_every_metric_and_label_value_is_in_a_live_page(self):
        """A mistyped reason would never fire, nor show."""
        pages = "\n".join([*(b.metrics() for b in brokers), fetch(f"{etcd.url}/metrics")[1]])
        names = set(re.findall(r"^(\w+)(?:{| )", pages, re.M)) | {"up"}
        self.assertGreater(len(names), 100)
        for where, expression in expressions().items():
            self.assertEqual(metrics_of(expression) - names, set(), where)
            for metric, label, value in values_of(expression):
                self.assertRegex(pages, rf'(?m)^{metric}{{[^}}]*\b{label}="{value}"', where)

    def test_4_no_alert_fires_while_all_is_well(self):
        """Nor fails: Prometheus evaluates the shipped rules every second meanwhile."""
        # How fast the disk of the machine is that runs the tests is not the brokers' doing.
        disk = ("BerthEtcdSlowDisk", "BerthJournalSlow")
        for rule in rules():
            rows = {where for where in found(rule["alert"]) if where[0] != "waiting"}
            if rule["alert"] not in disk:
                self.assertEqual(rows, set(), rule["alert"])
        for group in prometheus.api("rules")["groups"]:
            for rule in group["rules"]:
                self.assertEqual((rule["health"], rule.get("lastError", "")), ("ok", ""), rule["name"])
        states = prometheus.query(f'ALERTS{{job!="waiting",alertname!~"{"|".join(disk)}"}}')
        self.assertEqual(states, [])

    def test_5_the_units_system_calls_suffice(self):
        status = Path(f"/proc/{brokers[1].process.child.pid}/status").read_text()
        self.assertRegex(status, r"(?m)^Seccomp:\s+2$")
        self.assertRegex(status, r"(?m)^NoNewPrivs:\s+1$")
        self.assertNotIn("Operation not permitted", brokers[1].process.said())
        sent = f'sum(mqtt_messages_sent_total{{instance="{address(brokers[1])}"}})'
        self.assertGreater(prometheus.query(sent)[0][1], 0)

    def test_6_a_broker_that_cannot_join_is_told_apart(self):
        """Sooner than the alert, which gives it a minute; from one whose journal fails, too."""
        sooner = lambda expression: expression.replace("> 60", "> 5")  # noqa: E731
        self.assertNotEqual(sooner("> 60"), "> 60")
        until("it is told apart", lambda: found("BerthStartsForLong", sooner) == {("waiting", address(waiting))})
        self.assertEqual(found("BerthJournalFailing"), set())
        self.assertEqual(found("BerthNotServing"), set())
        self.assertIn("is tried again until it succeeds", waiting.process.said())

        run(mosquitto("sub", full.mqtt, "-V", "5", "-i", "away", "-c", "-x", "3600", "-q", "1", "-t", "fill", "-E"))
        message = place.dir / "message"
        message.write_bytes(bytes(300_000))

        def refused() -> bool:
            run(mosquitto("pub", full.mqtt, "-V", "5", "-q", "1", "-t", "fill", "-f", str(message)))
            return found("BerthPublishesRefused") == {("full", address(full))}

        until("publishes are refused", refused)
        until("its journal fails", lambda: found("BerthJournalFailing") == {("full", address(full))})
        self.assertEqual(found("BerthStartsForLong", sooner), {("waiting", address(waiting))})

    def test_7_a_killed_broker_is_noticed(self):
        gone = brokers[2]
        gone.process.end(signal.SIGKILL)
        until("it is down", lambda: found("BerthBrokerDown") == {("berth", address(gone))})
        # The others are linked with all that are up.
        until("links count those that are up", lambda: found("BerthPeerLinkMissing") == set())
        # Its session holds the publishes of others.
        until("publishes are held", lambda: prometheus.query('min(berth_publishes_held{job="berth"} > 0)'))
        gone.start()
        gone.wait()
        until("it is there again", lambda: found("BerthBrokerDown") == set())
        until("nothing is held for long", lambda: prometheus.query('max(berth_publishes_held{job="berth"} < 1000)'))

    def test_8_an_etcd_that_hangs_is_noticed(self):
        etcd.process.send(signal.SIGSTOP)
        all_of_them = {("berth", address(b)) for b in brokers}
        until("the brokers lag", lambda: found("BerthEtcdUnreachable") == all_of_them, 60)
        # A member that hangs is not scraped either: what Prometheus knows of it ends, and its alerts have nothing to say.
        self.assertEqual(found("BerthNotServing"), set())
        etcd.process.send(signal.SIGCONT)
        until("they have caught up", lambda: found("BerthEtcdUnreachable") == set(), 60)

    def test_9_a_cluster_stops_within_the_units_time(self):
        load.stop()
        until("the brokers are in step", lambda: all(b.ready() for b in brokers))
        for broker in brokers:
            self.assertEqual(broker.process.end(within=40), 0, broker.process.said()[-2000:])


if __name__ == "__main__":
    unittest.main()

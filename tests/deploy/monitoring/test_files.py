"""Files below deploy/ and the pages about them, without anything running but the tools that check them."""

import re
import tempfile
import unittest
from pathlib import Path

import yaml
from alert_cases import CASES, promtool_file
from machines import BERTH, DEPLOY, ROOT, run
from shipped import ALERTS, DASHBOARDS, METRIC, board, documented_metrics, expressions, filled, metrics_of, plain, queries, rules, variables

OPERATIONS = ROOT / "docs/operations.md"


def anchor(heading: str) -> str:
    """The anchor that a renderer of Markdown gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections(page: str) -> dict[str, str]:
    """The text below each heading of a page, by its anchor."""
    found: dict[str, str] = {}
    at = ""
    fenced = False
    for line in page.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            at = anchor(line.lstrip("#"))
            found[at] = ""
        elif at:
            found[at] += line + "\n"
    return found


class Alerts(unittest.TestCase):
    def test_promtool_accepts_rules_and_configuration(self):
        for command in (["check", "rules", ALERTS], ["check", "config", DEPLOY / "prometheus/prometheus.yml"]):
            done = run(["promtool", *command])
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("FAILED", done.stdout + done.stderr)

    def test_each_alert_fires_and_does_not(self):
        self.assertEqual(sorted(CASES), sorted(rule["alert"] for rule in rules()))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cases.yml"
            file.write_text(yaml.safe_dump(promtool_file(str(ALERTS))))
            done = run(["promtool", "test", "rules", file], 120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_alert_says_how_bad_it_is_and_what_to_do(self):
        page = sections(OPERATIONS.read_text())
        for rule in rules():
            with self.subTest(rule["alert"]):
                self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
                self.assertEqual(set(rule["labels"]), {"severity"})
                self.assertEqual(set(rule["annotations"]), {"summary", "description", "runbook_url"})
                name = rule["alert"].lower()
                self.assertEqual(rule["annotations"]["runbook_url"], f"docs/operations.md#{name}")
                # No section, no help.
                self.assertGreater(len(page.get(name, "").split()), 15, f"docs/operations.md says too little on {rule['alert']}")

    def test_no_page_describes_an_alert_that_is_not_there(self):
        described = re.findall(r"^#+ (Berth[A-Z]\w+)$", OPERATIONS.read_text(), re.M)
        self.assertEqual(sorted(described), sorted(rule["alert"] for rule in rules()))


class Dashboards(unittest.TestCase):
    def test_they_are_what_grafana_reads(self):
        self.assertEqual([path.name for path in DASHBOARDS], ["cluster.json", "etcd.json", "node.json"])
        uids = set()
        for path in DASHBOARDS:
            with self.subTest(path.name):
                shown = board(path)
                uids.add(shown["uid"])
                self.assertNotIn("id", shown)
                ids = [panel["id"] for panel in shown["panels"]]
                self.assertEqual(len(ids), len(set(ids)))
                self.assertGreater(len(queries(path)), 10)
                for panel in shown["panels"]:
                    at = panel["gridPos"]
                    self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
                    if panel["type"] != "row":
                        self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                        refs = [target["refId"] for target in panel["targets"]]
                        self.assertTrue(refs and len(refs) == len(set(refs)), panel["title"])
        self.assertEqual(len(uids), len(DASHBOARDS))

    def test_panels_do_not_overlap(self):
        for path in DASHBOARDS:
            taken: dict[tuple[int, int], str] = {}
            for panel in board(path)["panels"]:
                at = panel["gridPos"]
                for x in range(at["x"], at["x"] + at["w"]):
                    for y in range(at["y"], at["y"] + at["h"]):
                        other = taken.setdefault((x, y), panel["title"])
                        self.assertEqual(other, panel["title"], path.name)

    def test_variables_are_defined_and_used(self):
        for path in DASHBOARDS:
            names = {variable["name"] for variable in variables(path)}
            used = set()
            for query in queries(path):
                used |= set(re.findall(r"\$(\w+)", query.expression)) - {"__rate_interval"}
                self.assertNotIn("$", filled(query.expression), query.where)
            self.assertEqual(used | {"datasource"}, names, path.name)

    def test_every_metric_is_on_a_dashboard(self):
        shown = {plain(metric) if metric not in documented_metrics() else metric
                 for path in DASHBOARDS for query in queries(path) for metric in metrics_of(query.expression)}  # fmt: skip
        self.assertEqual(documented_metrics() - shown, set())

    def test_provisioning(self):
        """Grafana itself is not run: this reads what it would read."""
        folder = DEPLOY / "grafana/provisioning"
        sources = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())
        self.assertEqual(sources["apiVersion"], 1)
        (source,) = sources["datasources"]
        self.assertEqual((source["type"], source["access"], source["isDefault"]), ("prometheus", "proxy", True))
        self.assertRegex(source["url"], r"^http://prometheus:9090$")
        providers = yaml.safe_load((folder / "dashboards/berth.yml").read_text())
        self.assertEqual(providers["apiVersion"], 1)
        (provider,) = providers["providers"]
        self.assertEqual(provider["type"], "file")
        self.assertEqual(provider["options"]["path"], "/var/lib/grafana/dashboards")


class Expressions(unittest.TestCase):
    def test_each_names_metrics_that_are_documented(self):
        known = documented_metrics()
        for where, expression in expressions().items():
            with self.subTest(where):
                named = metrics_of(expression)
                self.assertTrue(named, "an expression without a metric")
                own = {m for m in named if m.startswith(("mqtt_", "berth_", "process_"))}
                self.assertEqual({m for m in own if m not in known and plain(m) not in known}, set())

    def test_the_reader_of_expressions_reads(self):
        self.assertEqual(metrics_of('rate(berth_x_total{reason="mqtt_y"}[5m]) / up'), {"berth_x_total", "up"})
        self.assertTrue(METRIC.fullmatch("etcd_server_has_leader"))


class Samples(unittest.TestCase):
    def test_the_broker_accepts_them(self):
        for name in ("single", "cluster", "restricted-etcd"):
            done = run([BERTH, "config", "check", "--config", DEPLOY / f"config/{name}.yaml"])
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_mistake_in_one_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "berth.yaml"
            file.write_text((DEPLOY / "config/cluster.yaml").read_text().replace("peer_address", "peer_adress"))
            done = run([BERTH, "config", "check", "--config", file])
        self.assertEqual(done.returncode, 2)
        self.assertIn("peer_adress", done.stderr)

    def test_the_time_to_stop_fits(self):
        longest = max(
            int(re.fullmatch(r"(\d+)s", yaml.safe_load(path.read_text())["shutdown"]["timeout"])[1])
            for path in (DEPLOY / "config").glob("*.yaml")
        )
        unit = (DEPLOY / "berth.service").read_text()
        # An etcd that does not answer adds 3 s.
        self.assertGreaterEqual(int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1]), longest + 3)


class Unit(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.unit = Path(self.folder.name) / "berth.service"
        # The binary is not installed where the unit expects it.
        text = (DEPLOY / "berth.service").read_text()
        self.assertIn("ExecStart=/usr/local/bin/berth serve", text)
        self.unit.write_text(text.replace("/usr/local/bin/berth", str(BERTH)))

    def test_systemd_understands_it(self):
        done = run(["systemd-analyze", "verify", self.unit])
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_it_is_hardened(self):
        done = run(["systemd-analyze", "security", "--offline=yes", "--threshold=20", self.unit])
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        exposure = float(re.search(r"Overall exposure level for berth.service: ([\d.]+)", done.stdout)[1])
        self.assertLess(exposure, 2.0)

    def test_a_wrong_configuration_is_not_tried_again(self):
        text = self.unit.read_text()
        status = int(re.search(r"^RestartPreventExitStatus=(\d+)$", text, re.M)[1])
        self.assertEqual(run([BERTH, "serve", "--set", "no.such=option"]).returncode, status)


class LogLines(unittest.TestCase):
    def test_those_of_the_page_are_said_by_the_broker(self):
        """Each in the table of docs/operations.md is in the source; `…` stands for what differs."""
        said = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.rs"))
        said = re.sub(r"\\\n\s*", "", said).replace('\\"', '"')
        table = sections(OPERATIONS.read_text())["log-lines"]
        lines = re.findall(r"^\| `([^`]+)`", table, re.M)
        self.assertGreater(len(lines), 20)
        for line in lines:
            for part in filter(None, (part.strip() for part in line.split("…"))):
                self.assertTrue(part in said, line)


if __name__ == "__main__":
    unittest.main()

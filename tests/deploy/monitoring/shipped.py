"""What is shipped below deploy/, read as the tests need it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from machines import DEPLOY, ROOT

ALERTS = DEPLOY / "prometheus/alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))

# Only `up` has another beginning: it is Prometheus' own.
METRIC = re.compile(r"\b(?:mqtt|berth|process|etcd)_\w+|\bup\b")
MATCHERS = re.compile(r"(\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@dataclass
class Query:
    """One query of a panel."""

    where: str
    expression: str
    legend: str


def board(path: Path) -> dict:
    return json.loads(path.read_text())


def queries(path: Path) -> list[Query]:
    return [
        Query(f"{path.name}: {panel['title']}: {target['refId']}", target["expr"], target["legendFormat"])
        for panel in board(path)["panels"]
        for target in panel.get("targets", [])
    ]


def variables(path: Path) -> list[dict]:
    return board(path)["templating"]["list"]


def filled(expression: str, **values: str) -> str:
    """An expression with its variables replaced as Grafana does it."""
    for name, value in {"namespace": ".*", "job": ".*", "instance": ".*", "etcd": ".*", "__rate_interval": "10s", **values}.items():
        expression = re.sub(rf"\${name}\b", lambda _, v=value: v, expression)
    return expression


def expressions() -> dict[str, str]:
    """Every expression of alerts and dashboards, by where it is."""
    found = {f"alerts.yml: {rule['alert']}": rule["expr"] for rule in rules()}
    return found | {query.where: query.expression for path in DASHBOARDS for query in queries(path)}


def metrics_of(expression: str) -> set[str]:
    """The metrics of an expression; what is in quotation marks is none."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))


def values_of(expression: str) -> list[tuple[str, str, str]]:
    """Metric, label and value wherever an expression looks for certain values of a label."""
    found = []
    for metric, inside in MATCHERS.findall(expression):
        for label, _, value in MATCHER.findall(inside):
            if "$" not in value:
                found += [(metric, label, one) for one in value.split("|")]
    return found


def documented_metrics() -> set[str]:
    return set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M))


def plain(metric: str) -> str:
    """Without the endings of a histogram's series."""
    return re.sub(r"_(bucket|sum|count)$", "", metric)

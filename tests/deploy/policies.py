"""Judges NetworkPolicies as a network plug-in does: which pod may open which port of which other."""

import ipaddress


def selects(selector, of):
    if selector is None:
        return False
    assert not selector.get("matchExpressions"), "not needed so far"
    return all(of.get(k) == v for k, v in selector.get("matchLabels", {}).items())


class Cluster:
    """`pods`: name -> (labels, labels of its namespace, namespace)."""

    def __init__(self, policies, pods, namespace):
        self.policies, self.pods, self.namespace = policies, pods, namespace
        # One address of each range that a rule names stands for what is outside.
        self.outside = sorted(
            {
                str(ipaddress.ip_network(peer["ipBlock"]["cidr"])[1 if ipaddress.ip_network(peer["ipBlock"]["cidr"]).num_addresses > 1 else 0])
                for p in policies for way in ("from", "to") for rule in p["spec"].get({"from": "ingress", "to": "egress"}[way], [])
                for peer in rule.get(way, []) if "ipBlock" in peer
            }
        )
        self.ports = sorted(
            {port["port"] for p in policies for rule in p["spec"].get("ingress", []) + p["spec"].get("egress", []) for port in rule.get("ports", [])} | {22}
        )

    def peer_fits(self, peer, other):
        if "ipBlock" in peer:
            return other not in self.pods and ipaddress.ip_address(other) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        if other not in self.pods:
            return False
        of, namespace_of, namespace = self.pods[other]
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], namespace_of):
                return False
        elif namespace != self.namespace:
            return False
        return "podSelector" not in peer or selects(peer["podSelector"], of)

    def way_open(self, way, pod, other, port):
        """Whether the policies of `pod` let it be asked by (ingress) or ask (egress) `other` at a port."""
        kind, side = {"in": ("Ingress", "from"), "out": ("Egress", "to")}[way]
        if pod not in self.pods or self.pods[pod][2] != self.namespace:
            return True
        mine = [p for p in self.policies if selects(p["spec"]["podSelector"], self.pods[pod][0]) and kind in p["spec"]["policyTypes"]]
        if not mine:
            return True
        for policy in mine:
            for rule in policy["spec"].get(kind.lower(), []):
                port_fits = "ports" not in rule or any(p["port"] == port for p in rule["ports"])
                peer_fits = not rule.get(side) or any(self.peer_fits(p, other) for p in rule[side])
                if port_fits and peer_fits:
                    return True
        return False

    def open_ports(self):
        names = list(self.pods) + self.outside
        return {
            (a, b, port)
            for a in names for b in names for port in self.ports
            if (a != b or a in ("broker", "etcd")) and self.way_open("out", a, b, port) and self.way_open("in", b, a, port)
        }

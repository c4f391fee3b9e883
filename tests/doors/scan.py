"""Looks for weak TLS at a listener and at admin HTTP with nmap and openssl, and compares with what docs/security.md says."""

import argparse
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from broker import Berth
from pki import Authority
from report import Report

SCRIPTS = (
    "ssl-enum-ciphers,ssl-cert,ssl-heartbleed,ssl-poodle,ssl-ccs-injection,ssl-dh-params,sslv2,sslv2-drown,tls-alpn,"
    "tls-ticketbleed,rsa-vuln-roca,ssl-known-key"
)
PATIENCE_S = 300
# What nmap calls the versions that are documented.
VERSIONS = {"TLSv1.2", "TLSv1.3"}
# Suites of TLS 1.2 and 1.3 that have forward secrecy and authenticate what they encrypt.
GOOD = re.compile(r"TLS_((ECDHE_(ECDSA|RSA)_WITH_)|AKE_WITH_)?(AES_(128|256)_GCM_SHA(256|384)|CHACHA20_POLY1305_SHA256)$")
WEAK = [
    "aNULL", "eNULL", "RC4", "3DES", "EXPORT:LOW", "kRSA", "kDHE", "AES128-SHA", "ECDHE+AES+SHA1",
    "ECDHE+AES+SHA256:!AESGCM", "ECDHE+AES+SHA384:!AESGCM", "AESCCM", "CAMELLIA:ARIA:SEED:IDEA",
]  # fmt: skip
# Scripts of nmap that speak only if they have found something.
SILENT = {
    "ssl-heartbleed", "ssl-poodle", "ssl-ccs-injection", "ssl-dh-params", "sslv2", "sslv2-drown", "tls-ticketbleed", "rsa-vuln-roca",
    "ssl-known-key",
}  # fmt: skip


def s_client(port: int, *args: str, typed: str = "Q\n", cert: tuple[str, str] | None = None) -> tuple[bool, str]:
    """Whether openssl agrees with a port, and all that it says. Input ends the conversation: what it does not want is `Q`."""
    own = ["-cert", cert[0], "-key", cert[1]] if cert else []
    command = ["timeout", "20", "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", *own, *args]
    done = subprocess.run(command, input=typed.encode(), capture_output=True)
    text = (done.stdout + done.stderr).decode(errors="replace")
    return done.returncode == 0 and "Cipher is (NONE)" not in text, text


def nmap(port: int, report: Report, where: str) -> None:
    """What nmap finds at a port."""
    command = ["nmap", "-Pn", "-n", "-p", str(port), "--script", SCRIPTS, "-oX", "-", "127.0.0.1"]
    # It looks only at ports that it takes for TLS: it is told so.
    command += ["--script-args", "tls.servername=localhost", "-sT", "-sV", "--version-intensity", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"nmap: {done.stderr}")
    scripts = {script.get("id", ""): script for script in ET.fromstring(done.stdout).iter("script")}
    enumerated = scripts.get("ssl-enum-ciphers")
    if enumerated is None:
        report.bound(f"{where}: nmap finds TLS", False, f"scripts that answered: {sorted(scripts)}")
        return
    rows, grades, versions, bad, compressors = [], set(), set(), [], set()
    for version in enumerated.findall("table"):
        versions.add(version.get("key", ""))
        for suite in version.findall("./table[@key='ciphers']/table"):
            parts = {e.get("key", ""): e.text or "" for e in suite.findall("elem")}
            rows.append([version.get("key"), parts.get("name", ""), parts.get("kex_info", ""), parts.get("strength", "")])
            grades.add(parts.get("strength", ""))
            if not GOOD.match(parts.get("name", "")):
                bad.append(parts.get("name", ""))
        compressors |= {e.text or "" for e in version.findall("./table[@key='compressors']/elem")}
    report.say(f"{where}, port {port}, by nmap:")
    report.table(["version", "suite", "key exchange", "grade"], rows)
    report.bound(f"{where}: only TLS 1.2 and 1.3 (nmap)", versions == VERSIONS, ", ".join(sorted(versions)))
    report.bound(f"{where}: suites have forward secrecy and authenticate (nmap)", not bad, ", ".join(bad) or f"{len(rows)} suites")
    report.bound(f"{where}: every suite has grade A (nmap)", grades == {"A"}, ", ".join(sorted(grades)))
    report.bound(f"{where}: no compression (nmap)", compressors <= {"NULL"}, ", ".join(sorted(compressors)) or "none")
    alarms = {name: scripts[name].get("output", "").strip() for name in SILENT & scripts.keys()}
    alarms = {name: said for name, said in alarms.items() if "VULNERABLE" in said.upper().replace("NOT VULNERABLE", "") or name == "sslv2"}
    report.bound(f"{where}: no known weakness (nmap: {', '.join(sorted(SILENT))})", not alarms, str(alarms) if alarms else "none")
    certificate = scripts["ssl-cert"].get("output", "") if "ssl-cert" in scripts else ""
    said = re.findall(r"(?:Subject|Public Key type|Public Key bits|Signature Algorithm|Not valid after): .*", certificate)
    report.note(f"{where}: certificate: {'; '.join(said)}")
    report.data[where] = {"suites": rows, "certificate": said, "scripts": {n: s.get("output", "") for n, s in scripts.items()}}


def openssl(port: int, report: Report, where: str, cert: tuple[str, str] | None = None) -> None:
    """What openssl agrees on with a port."""
    agreed = {v: s_client(port, flag, cert=cert) for v, flag in (("1.2", "-tls1_2"), ("1.3", "-tls1_3"))}
    old = {v: s_client(port, flag, "-cipher", "ALL:@SECLEVEL=0", cert=cert)[0] for v, flag in (("1.0", "-tls1"), ("1.1", "-tls1_1"))}
    found = [f"TLS {v}" for v, (ok, _) in agreed.items() if ok] + [f"TLS {v}" for v, ok in old.items() if ok]
    report.bound(f"{where}: TLS 1.2 and 1.3, nothing older (openssl)", found == ["TLS 1.2", "TLS 1.3"], ", ".join(found))
    weak = [w for w in WEAK if s_client(port, "-tls1_2", "-cipher", f"{w}:@SECLEVEL=0", cert=cert)[0]]
    report.bound(f"{where}: no weak suite of {len(WEAK)} kinds (openssl)", not weak, ", ".join(weak) or "none")
    plain = all("Compression: NONE" in text for _, text in agreed.values())
    report.bound(f"{where}: no compression (openssl)", plain, "Compression: NONE" if plain else "compressed")
    _, again = s_client(port, "-tls1_2", typed="R\n", cert=cert)
    refused = "RENEGOTIATING" in again and "no renegotiation" in again
    report.bound(f"{where}: no renegotiation (openssl)", refused, "refused" if refused else again[-200:])
    early = re.findall(r"Max Early Data: (\d+)", agreed["1.3"][1])
    none = all(n == "0" for n in early) and "Early data was accepted" not in agreed["1.3"][1]
    report.bound(f"{where}: no early data (openssl)", none, f"Max Early Data: {early or 'none'}")


def resumption(port: int, report: Report, where: str, resumes: bool, directory: Path, cert: tuple[str, str] | None = None) -> None:
    """Whether sessions are resumed, with both versions."""
    for version, flag in (("1.2", "-tls1_2"), ("1.3", "-tls1_3")):
        session = str(directory / f"session-{port}-{version}")
        # Tickets of TLS 1.3 come after the handshake: there has to be time for one to be read.
        _, text = s_client_waiting(port, session, flag, cert)
        if not Path(session).exists():
            found = False
        else:
            _, text = s_client(port, flag, "-sess_in", session, cert=cert)
            found = "Reused, " in text
        said = "documented: by tickets, but never where a client certificate is asked for"
        report.bound(f"{where}: TLS {version} sessions are {'' if resumes else 'not '}resumed", found == resumes, f"{'resumed' if found else 'not resumed'}; {said}")


def s_client_waiting(port: int, session: str, flag: str, cert: tuple[str, str] | None) -> tuple[bool, str]:
    """A connection that ends only when a session was written, or after a while without."""
    own = ["-cert", cert[0], "-key", cert[1]] if cert else []
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", flag, "-sess_out", session, *own]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        child.wait(3)
    except subprocess.TimeoutExpired:
        pass
    text = child.communicate(b"Q\n", timeout=PATIENCE_S)[0].decode(errors="replace")
    return child.returncode == 0, text


def run(args: argparse.Namespace, report: Report) -> None:
    """A listener with each kind of certificate, one that asks for clients' certificates, and admin HTTP."""
    for command in (["nmap", "--version"], ["openssl", "version"]):
        report.note(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="doors-") as name:
        directory = Path(name)
        authority = Authority(directory)
        ec, rsa, own = authority.server("broker"), authority.server("broker-rsa", "rsa"), authority.server("robot")
        covered = {"cert_file": ec[0], "key_file": ec[1]}
        listeners = {
            "tls": covered,
            "rsa": {"type": "tls", "cert_file": rsa[0], "key_file": rsa[1]},
            "wss": covered,
            "guarded": {"type": "tls", "client_certificates": "required", "client_ca_file": authority.ca, **covered},
        }
        options = {"http.cert_file": ec[0], "http.key_file": ec[1]}
        with Berth(args.berth, listeners, options) as berth:
            ports = {"listener with ECDSA": berth.ports["tls"], "listener with RSA": berth.ports["rsa"], "admin HTTP": berth.http}
            for where, port in ports.items():
                nmap(port, report, where)
                openssl(port, report, where)
            openssl(berth.ports["wss"], report, "listener wss")
            openssl(berth.ports["guarded"], report, "listener that asks for certificates", own)
            for where in ("listener with ECDSA", "admin HTTP"):
                resumption(ports[where], report, where, True, directory)
            resumption(berth.ports["guarded"], report, "listener that asks for certificates", False, directory, own)

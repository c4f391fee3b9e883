"""What docs/operations.md says of backups: what a journal brings back, and what a snapshot of etcd does."""

import shutil
import unittest

from machines import Broker, Etcd, Place, mosquitto, run, until


class Backup(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.close)

    def subscribe(self, broker: Broker, client: str) -> None:
        """Makes a session that is kept."""
        done = run(mosquitto("sub", broker.mqtt, "-V", "5", "-i", client, "-c", "-x", "3600", "-q", "1", "-t", f"to/{client}", "-E"))
        self.assertEqual(done.returncode, 0, done.stderr)

    def publish(self, broker: Broker, topic: str, text: str, *more: str) -> None:
        done = run(mosquitto("pub", broker.mqtt, "-V", "5", "-q", "1", "-t", topic, "-m", text, *more))
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def receive(self, broker: Broker, client: str, count: int) -> list[str]:
        """What waits for a session; it subscribes to nothing that would be new to it."""
        command = mosquitto("sub", broker.mqtt, "-V", "5", "-i", client, "-c", "-x", "3600", "-q", "1", "-t", f"to/{client}")
        return run([*command, "-C", str(count), "-W", "10"]).stdout.split()

    def retained(self, broker: Broker, topic: str) -> bool:
        return topic in broker.ctl("retained", "list").stdout

    def test_a_journal_brings_back_sessions_queues_and_retained_messages(self):
        broker = Broker(self.place, "berth-1", "single.yaml").wait()
        self.subscribe(broker, "phone")
        self.publish(broker, "to/phone", "one")
        self.publish(broker, "kept", "x", "-r")
        # A journal is copied while its broker is stopped.
        self.assertEqual(broker.process.end(), 0)
        copy = self.place.dir / "copy"
        shutil.copytree(broker.dir, copy)
        broker.start()
        broker.wait()
        self.publish(broker, "to/phone", "two")
        self.assertEqual(self.receive(broker, "phone", 2), ["one", "two"])
        self.assertEqual(broker.process.end(), 0)

        shutil.rmtree(broker.dir)
        shutil.copytree(copy, broker.dir)
        broker.start()
        broker.wait()
        self.assertTrue(self.retained(broker, "kept"))
        # As it was then: the second message is not in the copy, and the first is delivered once more.
        self.publish(broker, "to/phone", "three")
        self.assertEqual(self.receive(broker, "phone", 2), ["one", "three"])

    def test_a_snapshot_of_etcd_and_the_journals_bring_back_a_cluster(self):
        etcd = Etcd(self.place)
        broker = Broker(self.place, "berth-1", "cluster.yaml", etcd.url).wait()
        self.subscribe(broker, "before")
        self.publish(broker, "kept/before", "x", "-r")
        snapshot = self.place.dir / "snapshot.db"
        self.assertEqual(etcd.ctl("snapshot", "save", str(snapshot)).returncode, 0)
        self.subscribe(broker, "after")
        self.publish(broker, "kept/after", "x", "-r")
        # Only a broker that was started since the backup notices that etcd is older than its journal.
        self.assertEqual(broker.process.end(within=40), 0)
        broker.start()
        broker.wait()
        for client in ("before", "after"):
            self.publish(broker, f"to/{client}", "waits")
        self.assertEqual(broker.process.end(within=40), 0)
        etcd.process.end()

        data = self.place.dir / "restored"
        peers = etcd.command[etcd.command.index("--initial-advertise-peer-urls") + 1]
        done = etcd.ctl(
            "snapshot", "restore", str(snapshot), "--name", etcd.name, "--data-dir", str(data),
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"{etcd.name}={peers}",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        etcd.command[etcd.command.index("--data-dir") + 1] = data
        etcd.process = self.place.start("etcd-restored", etcd.command)
        broker.start()
        broker.wait()
        # What each session had is in the journal, whether etcd knew of it then or not.
        for client in ("before", "after"):
            self.publish(broker, f"to/{client}", "new")
            self.assertEqual(self.receive(broker, client, 2), ["waits", "new"], client)
        until("the retained message of the snapshot is there", lambda: self.retained(broker, "kept/before"))
        self.assertFalse(self.retained(broker, "kept/after"))

    def test_an_empty_etcd_is_told_all_sessions_again(self):
        etcd = Etcd(self.place)
        broker = Broker(self.place, "berth-1", "cluster.yaml", etcd.url).wait()
        self.subscribe(broker, "phone")
        self.publish(broker, "to/phone", "waits")
        self.publish(broker, "kept", "x", "-r")
        broker.process.end(within=40)
        # With the revisions of a longer life.
        broker.start()
        broker.wait()
        broker.process.end(within=40)
        etcd.process.end()
        etcd.command[etcd.command.index("--data-dir") + 1] = self.place.dir / "empty"
        etcd.process = self.place.start("etcd-empty", etcd.command)
        broker.start()
        broker.wait()
        self.publish(broker, "to/phone", "new")
        self.assertEqual(self.receive(broker, "phone", 2), ["waits", "new"])
        self.assertFalse(self.retained(broker, "kept"))

    def test_a_lost_journal_is_given_up_by_a_command(self):
        """What docs/operations.md says of a lost disk, or a lost PVC."""
        etcd = Etcd(self.place)
        # Soon enough for a test.
        times = {"cluster.lease": "2s", "cluster.stale_after": "1s", "cluster.suback_wait": "2s", "cluster.takeover_timeout": "2s"}
        first = Broker(self.place, "berth-1", "cluster.yaml", etcd.url, **times)
        second = Broker(self.place, "berth-2", "cluster.yaml", etcd.url, **times)
        for broker in (first, second):
            broker.wait()
        self.subscribe(first, "phone")
        first.process.child.kill()
        first.process.child.wait()
        shutil.rmtree(first.dir)
        first.start()
        first.wait()

        command = mosquitto("sub", second.mqtt, "-V", "5", "-i", "phone", "-c", "-x", "3600", "-q", "1", "-t", "to/phone", "-E", "-W", "30")
        self.assertIn("waits for its node", second.ctl("cluster", "status").stdout)
        # Server unavailable.
        self.assertEqual(run(command, 60).returncode, 0x88)
        forgotten = second.ctl("cluster", "forget", "berth-1")
        self.assertEqual(forgotten.returncode, 0, forgotten.stderr)
        until("its client has a new session", lambda: run(command, 60).returncode == 0)
        self.assertNotIn("waits for its node", second.ctl("cluster", "status").stdout)
        # The node with the new journal serves on.
        self.publish(first, "to/phone", "hello")
        self.assertEqual(self.receive(second, "phone", 1), ["hello"])


if __name__ == "__main__":
    unittest.main()

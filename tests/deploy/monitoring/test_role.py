"""deploy/etcd-role.sh makes a user that is enough for a broker with deploy/config/restricted-etcd.yaml, and may do nothing else."""

import unittest

from machines import DEPLOY, Broker, Etcd, Place, fetch, mosquitto, run, until

ROLE = DEPLOY / "etcd-role.sh"
USER = "berth-plant-7"


class Role(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.close)
        self.etcd = Etcd(self.place)
        self.password = self.place.dir / "password"
        self.password.write_text("first-word\n")
        self.password.chmod(0o600)

    def make(self, *arguments: str, user: str | None = None, input: str = ""):
        return run(["sh", ROLE, *arguments], env=self.etcd.environment(user), input=input)

    def permitted(self, *arguments: str, user: str) -> bool:
        done = self.etcd.ctl(*arguments, user=user)
        if done.returncode != 0:
            self.assertIn("permission denied", done.stderr)
        return done.returncode == 0

    def test_a_broker_lives_with_it_and_it_may_do_nothing_else(self):
        done = self.make("--cluster", "plant-7", "--password-file", str(self.password))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(f"username: {USER}", done.stdout)
        for step in (["user", "add", "root:rootword"], ["user", "grant-role", "root", "root"], ["auth", "enable"]):
            done = self.etcd.ctl(*step)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotEqual(self.etcd.ctl("get", "x").returncode, 0)

        # The sample as it is shipped, but for what belongs to the machine: addresses, and no TLS.
        broker = Broker(
            self.place, "berth-1", "restricted-etcd.yaml", self.etcd.url,
            **{"etcd.password_file": str(self.password), "etcd.ca_file": ""},
        ).wait()  # fmt: skip
        run(mosquitto("pub", broker.mqtt, "-q", "1", "-r", "-t", "a", "-m", "kept"))

        broker_user = f"{USER}:first-word"
        keys = "/berth/plant-7/v1/"
        found = self.etcd.ctl("get", "--prefix", "--keys-only", keys, user=broker_user).stdout.split()
        self.assertTrue({f"{keys}members/berth-1", f"{keys}retained/a"} <= set(found), found)
        self.assertTrue(self.permitted("put", f"{keys}test", "x", user=broker_user))
        for other in ("/berth/plant-7/v10", "/berth/plant-7", "/berth/plant-77/v1/x", "/other"):
            self.assertFalse(self.permitted("get", other, user=broker_user), other)
            self.assertFalse(self.permitted("put", other, "x", user=broker_user), other)
        self.assertFalse(self.permitted("get", "--prefix", "/berth/", user=broker_user))
        self.assertFalse(self.permitted("user", "list", user=broker_user))

        # The reader's role, given to somebody.
        for step in (["user", "add", "eye:word"], ["user", "grant-role", "eye", f"{USER}-reader"]):
            self.assertEqual(self.etcd.ctl(*step, user="root:rootword").returncode, 0)
        self.assertTrue(self.permitted("get", "--prefix", keys, user="eye:word"))
        self.assertFalse(self.permitted("put", f"{keys}test", "x", user="eye:word"))
        self.assertFalse(self.permitted("get", "/other", user="eye:word"))

        # Again, with another password: from the file first, as docs/etcd.md says.
        self.password.write_text("second-word\n")
        done = self.make("--cluster", "plant-7", user="root:rootword", input="second-word\n")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(self.permitted("get", keys, user=f"{USER}:second-word"))

        def session_made() -> bool:
            client = mosquitto("sub", broker.mqtt, "-V", "5", "-i", "new", "-c", "-x", "60", "-q", "1", "-t", "b", "-E", "-W", "2")
            return run(client).returncode == 0 and "/berth/plant-7/v1/sessions/new" in self.etcd.ctl(
                "get", "--keys-only", f"{keys}sessions/new", user="root:rootword"
            ).stdout

        until("a new session is written with the new password", session_made)
        self.assertEqual(fetch(f"http://127.0.0.1:{broker.http}/ready")[0], 200)

    def test_mistakes_are_named(self):
        for arguments, input, said in (
            (["--cluster", "a/b"], "x\n", "--cluster a/b"),
            (["--prefix", "/berth/"], "x\n", "--prefix /berth/"),
            (["--user", "root"], "x\n", "not root"),
            (["--no-such"], "x\n", "--no-such"),
            ([], "", "no password"),
            ([], "two words\n", "white space"),
            (["--password-file", "/nonexistent"], "", "/nonexistent"),
        ):
            done = self.make(*arguments, input=input)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertIn(said, done.stderr)
        self.assertEqual(self.etcd.ctl("user", "list").stdout, "")


if __name__ == "__main__":
    unittest.main()

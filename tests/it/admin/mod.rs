//! Admin HTTP as operators meet it: TLS, tokens, what is told to whom.

mod defaults;
mod nouns;
mod openapi;
mod secrets;
mod tls;

use crate::broker::Broker;
use crate::listeners::pki::{Pem, save};
use crate::operate::Said;
use tempfile::TempDir;

/// Files with tokens of an administrator, `alice`, and of somebody who may only read.
pub struct Tokens {
    dir: TempDir,
    pub admin: Pem,
    pub read: Pem,
}

impl Tokens {
    pub fn new() -> Tokens {
        let dir = tempfile::tempdir().unwrap();
        let admin = save(&dir.path().join("admin"), "alice aaaaaaaaaaaaaaaaaaaaaaaa\n");
        let read = save(&dir.path().join("read"), "bbbbbbbbbbbbbbbbbbbbbbbb\n");
        Tokens { dir, admin, read }
    }

    /// Where a file of this name would be beside them.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

/// Runs `berth ctl` with environment variables, at `https://localhost` unless the arguments say otherwise.
fn secure_ctl(broker: &Broker, env: &[(&str, &str)], args: &[&str]) -> Said {
    let url = format!("https://localhost:{}", broker.http.port());
    let mut command = crate::broker::command();
    let output =
        command.arg("ctl").args(args).env("BERTH_URL", url).envs(env.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

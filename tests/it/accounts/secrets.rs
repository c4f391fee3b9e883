//! Secrets that are planted wherever a client or an operator can put one: none comes out anywhere.

use super::{Files, answer};
use crate::client::Dial;

/// Found wherever it shows.
const PLANTED: &str = "plantedsecret";

#[test]
fn no_secret_shows_in_logs_metrics_or_status() {
    let files = Files::new();
    files.user("alice", PLANTED);
    let mut broker = files.setup().set("log.level", "trace").start();
    let hash = std::fs::read_to_string(files.users()).unwrap().trim().rsplit('$').next().unwrap().to_owned();
    let _online = Dial::v5("online").user("alice", PLANTED).connect(broker.mqtt);
    for dial in [
        Dial::v5("a").user("alice", &format!("{PLANTED}2")),
        // In the wrong field.
        Dial::v5("b").user(&format!("{PLANTED}3"), "x"),
        Dial::v4("c").user(PLANTED, PLANTED),
    ] {
        assert!(answer(&dial, broker.mqtt).is_error());
    }
    let good = std::fs::read_to_string(files.users()).unwrap();
    files.write("users", format!("{good}bob:{PLANTED}4\n"));
    broker.wait_log(|l| l.contains("ERROR") && l.contains("line 2"));
    let pages =
        ["/metrics", "/cluster/status", "/health", "/ready", "/api/v1/sessions", "/api/v1/sessions/online"];
    let mut said: Vec<(String, String)> = pages.iter().map(|p| ((*p).to_owned(), broker.get(p).1)).collect();
    said.push(("log".to_owned(), broker.log()));
    for (place, text) in said {
        for secret in [PLANTED, &hash] {
            let found: Vec<&str> = text.lines().filter(|l| l.contains(secret)).collect();
            assert!(found.is_empty(), "{place}: {found:#?}");
        }
    }
}

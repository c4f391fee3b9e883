//! Golden transcripts: dialogues between clients and the broker, replayed byte for byte in virtual time against the
//! production broker core. They lie in `tests/transcripts/*.txt`.
//!
//! ```text
//! # a comment; `# covers: <tag> …` says which rules the dialogue shows
//! * broker receive_maximum=2        limits, before anything else or before a restart
//! > c1 CONNECT v5 id=x clean=0      client c1 sends a packet, over a new connection if it has none
//! < c1 CONNACK present=0            what clients see of it: all of it, in order, client by client
//! >> c1 PINGREQ                     sent together with the next packet of c1, in one segment
//! > c1 HEX v5 c000                  any bytes
//! * advance 90s                     time passes
//! * open c1                         a connection on which nothing is sent yet
//! * part c1 100 PUBLISH t=t          c1 sends the first 100 bytes of a packet
//! * part c1 50                      and 50 more
//! * finish c1                       c1 closes its side of the connection
//! * lost c1                         c1's connection breaks; what c1 has sent before arrives
//! * stall c1, * unstall c1          c1 stops reading, and reads again
//! * restart                         the broker dies without a word and starts again with what was durable
//! * shutdown, * kick x              as on SIGTERM; as by an operator
//! * journal hold, release [n], fail nothing becomes durable; (n appends) become durable; and the journal says so
//! * count queue_full queued         what the broker counts
//! * log                             what it has logged about losses since the last time
//! ```
//!
//! Properties: `expiry` is the session's, `ttl` the message's; the others are named after the specification. A CONNACK is
//! shown without the announced limits while these are the defaults. A payload is text, `hex:…` or `1000*x`.
//!
//! `UPDATE_TRANSCRIPTS=1` writes what came into the files. What is there then is what the broker does; whether it is right,
//! the specification says.

mod encode;
mod held_back;
mod log;
mod render;
mod script;
mod tags;
mod words;
pub mod world;

use crate::tree::root;
use script::Script;
use std::path::PathBuf;

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join("tests/transcripts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_dialogue_goes_as_written() {
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let only = std::env::var("TRANSCRIPT").unwrap_or_default();
    let mut wrong = Vec::new();
    for path in files().iter().filter(|p| p.to_string_lossy().contains(&only)) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let outcome = match std::panic::catch_unwind(|| Script::parse(&text).run()) {
            Ok(outcome) => outcome,
            Err(_) => {
                wrong.push(format!("{name}: panicked"));
                continue;
            }
        };
        if update && outcome.actual != text {
            std::fs::write(path, &outcome.actual).unwrap();
        }
        wrong.extend(outcome.differences.iter().map(|d| format!("{name} {d}")));
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every rule in [`tags::ALL`] has a dialogue, and no dialogue shows a rule that is not in the list.
#[test]
fn every_rule_has_a_dialogue() {
    let files = files();
    assert!(files.len() >= 60, "{} dialogues", files.len());
    let mut covered = Vec::new();
    for path in &files {
        let tags = Script::parse(&std::fs::read_to_string(path).unwrap()).tags;
        assert!(!tags.is_empty(), "{} covers nothing", path.display());
        for tag in tags {
            assert!(tags::ALL.contains(&&*tag), "{}: unknown tag {tag}", path.display());
            covered.push(tag);
        }
    }
    let missing: Vec<_> = tags::ALL.iter().filter(|t| !covered.iter().any(|c| c == **t)).collect();
    assert!(missing.is_empty(), "without a dialogue: {missing:?}");
}

/// A dialogue that goes otherwise than written is found out, in each way there is.
#[test]
fn a_wrong_dialogue_is_noticed() {
    let differs = |text: &str| !Script::parse(text).run().differences.is_empty();
    let right = "> c1 CONNECT v5 id=x\n< c1 CONNACK present=0\n> c1 PINGREQ\n< c1 PINGRESP\n";
    assert!(!differs(right));
    assert!(differs(&right.replace("present=0", "present=1")));
    assert!(differs(&right.replace("< c1 PINGRESP\n", "")));
    assert!(differs(&format!("{right}< c1 PINGRESP\n")));
    assert!(differs(&right.replace("> c1 PINGREQ", "* advance 1s")));
    assert!(differs("> c1 CONNECT v5 nonsense=1\n"));
}

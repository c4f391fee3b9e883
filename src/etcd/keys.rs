//! Every key of the cluster in etcd, below `<prefix>/<cluster>/v1/`: how it is built and how it is read.
//!
//! Node and client IDs are percent-encoded, so that a `/` always ends one. Numbers are padded with zeros: the order of keys is
//! the order of numbers. A topic is the rest of its key, as it is.

use crate::ports::{BanKind, DirectoryKey, Incarnation, MemberId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::sync::Arc;

/// The layout's version, a part of every key.
const VERSION: &str = "v1";

/// What stays as it is in a node or client ID.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Digits of a number in a key: enough for every 64-bit number.
const DIGITS: usize = 20;

/// Builds and reads the keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    root: Arc<str>,
}

/// A key, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `members/<node>`
    Member {
        /// The node.
        node: Arc<str>,
    },
    /// `leader/<lease>`
    Leader,
    /// `custody/<node>/<incarnation>`
    Custody {
        /// The incarnation.
        of: MemberId,
    },
    /// `journals/<journal>`
    Journal {
        /// The journal's ID.
        journal: u64,
    },
    /// `sessions/<client>`
    Session {
        /// Client identifier.
        client_id: Arc<str>,
    },
    /// `routes/<node>/<incarnation>/<page>`
    Routes {
        /// The incarnation.
        of: MemberId,
        /// Number of the page.
        page: u64,
    },
    /// `retained/<topic>`
    Retained {
        /// The topic.
        topic: Arc<str>,
    },
    /// `evictions/<node>/<client>`
    Eviction {
        /// The node that had the session.
        node: Arc<str>,
        /// Client identifier.
        client_id: Arc<str>,
    },
    /// `users/<user>`, `acl/rules`, `bans/<kind>/<name>`
    Directory(DirectoryKey),
    /// `restored`
    Restored,
    /// `forgotten/<journal>`
    Forgotten {
        /// The journal.
        journal: u64,
    },
}

fn encode(id: &str) -> String {
    utf8_percent_encode(id, ENCODED).to_string()
}

fn decode(part: &str) -> Option<Arc<str>> {
    let id = percent_decode_str(part).decode_utf8().ok()?;
    // One ID has one key only.
    (!id.is_empty() && encode(&id) == part).then(|| Arc::from(&*id))
}

fn number(part: &str) -> Option<u64> {
    (part.len() == DIGITS && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
}

/// As [`Keys::journal`] writes it.
fn hex_number(part: &str) -> Option<u64> {
    let digits = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (part.len() == 16 && digits).then(|| u64::from_str_radix(part, 16).ok())?
}

fn incarnation_of(node: &str, incarnation: &str) -> Option<MemberId> {
    Some(MemberId { node: decode(node)?, incarnation: number(incarnation)? })
}

impl Keys {
    /// The keys of `cluster` below `prefix` (`/berth` by default; slashes around it do not matter, and it may be empty).
    pub fn new(prefix: &str, cluster: &str) -> Keys {
        let prefix = prefix.trim_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        Keys { root: format!("{slash}{prefix}/{}/{VERSION}/", encode(cluster)).into() }
    }

    /// What all keys of the cluster begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A key that nobody ever writes.
    pub fn nothing(&self) -> String {
        format!("{}nothing", self.root)
    }

    /// What all `members/` keys begin with.
    pub fn members(&self) -> String {
        format!("{}members/", self.root)
    }

    /// `members/<node>`: a live node's record.
    pub fn member(&self, node: &str) -> String {
        format!("{}members/{}", self.root, encode(node))
    }

    /// What all candidates' keys begin with.
    pub fn leaders(&self) -> String {
        format!("{}leader/", self.root)
    }

    /// `leader/<lease>`: a candidate's key, named as etcd's own election names it (the lease in hexadecimal).
    pub fn leader(&self, lease: i64) -> String {
        format!("{}leader/{lease:x}", self.root)
    }

    /// What all `custody/` keys begin with.
    pub fn custodies(&self) -> String {
        format!("{}custody/", self.root)
    }

    /// What the `custody/` keys of a node's incarnations begin with.
    pub fn custodies_of(&self, node: &str) -> String {
        format!("{}custody/{}/", self.root, encode(node))
    }

    /// `custody/<node>/<incarnation>`: who may speak for everything the incarnation owns.
    pub fn custody(&self, of: &MemberId) -> String {
        format!("{}custody/{}", self.root, incarnation(of))
    }

    /// What all `journals/` keys begin with.
    pub fn journals(&self) -> String {
        format!("{}journals/", self.root)
    }

    /// `journals/<journal>`: what its last process said of a journal; the ID in 16 hexadecimal digits, as in other values.
    pub fn journal(&self, journal: u64) -> String {
        format!("{}journals/{journal:016x}", self.root)
    }

    /// What all `sessions/` keys begin with.
    pub fn sessions(&self) -> String {
        format!("{}sessions/", self.root)
    }

    /// `sessions/<client>`: who owns the session.
    pub fn session(&self, client_id: &str) -> String {
        format!("{}sessions/{}", self.root, encode(client_id))
    }

    /// What all `routes/` keys begin with.
    pub fn routes(&self) -> String {
        format!("{}routes/", self.root)
    }

    /// What the keys of an incarnation's route pages begin with.
    pub fn routes_of(&self, of: &MemberId) -> String {
        format!("{}routes/{}/", self.root, incarnation(of))
    }

    /// `routes/<node>/<incarnation>/<page>`.
    pub fn route_page(&self, of: &MemberId, page: u64) -> String {
        format!("{}{page:0DIGITS$}", self.routes_of(of))
    }

    /// What all `retained/` keys begin with.
    pub fn all_retained(&self) -> String {
        format!("{}retained/", self.root)
    }

    /// `retained/<topic>`.
    pub fn retained(&self, topic: &str) -> String {
        format!("{}retained/{topic}", self.root)
    }

    /// What all `evictions/` keys begin with.
    pub fn evictions(&self) -> String {
        format!("{}evictions/", self.root)
    }

    /// What the `evictions/` keys of a node begin with.
    pub fn evictions_of(&self, node: &str) -> String {
        format!("{}evictions/{}/", self.root, encode(node))
    }

    /// `evictions/<node>/<client>`: a session of that node was replaced over its head.
    pub fn eviction(&self, node: &str, client_id: &str) -> String {
        format!("{}evictions/{}/{}", self.root, encode(node), encode(client_id))
    }

    /// `users/<user>`, `acl/rules`, `bans/<kind>/<name>`: what all nodes share of users, rules and bans.
    pub fn directory(&self, key: &DirectoryKey) -> String {
        match key {
            DirectoryKey::User(name) => format!("{}users/{}", self.root, encode(name)),
            DirectoryKey::Rules => format!("{}acl/rules", self.root),
            DirectoryKey::Ban { kind, name } => {
                format!("{}bans/{}/{}", self.root, kind.name(), encode(name))
            }
        }
    }

    /// `restored`: how often the store was restored from a backup.
    pub fn restored(&self) -> String {
        format!("{}restored", self.root)
    }

    /// `forgotten/<journal>`: what processes with this journal had was given up (the journal's name in hexadecimal).
    pub fn forgotten(&self, journal: u64) -> String {
        format!("{}forgotten/{journal:016x}", self.root)
    }

    /// Reads a key; `None` if it is not one of this layout.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&*self.root)?;
        if rest == "restored" {
            return Some(Key::Restored);
        }
        let (kind, rest) = rest.split_once('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        match (kind, &*parts) {
            ("members", [node]) => Some(Key::Member { node: decode(node)? }),
            ("leader", [lease]) if !lease.is_empty() => Some(Key::Leader),
            ("custody", [node, number]) => Some(Key::Custody { of: incarnation_of(node, number)? }),
            ("journals", [name]) => Some(Key::Journal { journal: hex_number(name)? }),
            ("sessions", [client]) => Some(Key::Session { client_id: decode(client)? }),
            ("routes", [node, of, page]) => {
                Some(Key::Routes { of: incarnation_of(node, of)?, page: number(page)? })
            }
            ("retained", _) if !rest.is_empty() => Some(Key::Retained { topic: rest.into() }),
            ("evictions", [node, client]) => {
                Some(Key::Eviction { node: decode(node)?, client_id: decode(client)? })
            }
            ("users", [user]) => Some(Key::Directory(DirectoryKey::User(decode(user)?))),
            ("acl", ["rules"]) => Some(Key::Directory(DirectoryKey::Rules)),
            ("bans", [kind, name]) => {
                let (kind, name) = (BanKind::of(kind)?, decode(name)?);
                Some(Key::Directory(DirectoryKey::Ban { kind, name }))
            }
            ("forgotten", [journal]) if journal.len() == 16 => {
                Some(Key::Forgotten { journal: u64::from_str_radix(journal, 16).ok()? })
            }
            _ => None,
        }
    }
}

/// `<node>/<incarnation>`
fn incarnation(of: &MemberId) -> String {
    let number: Incarnation = of.incarnation;
    format!("{}/{number:0DIGITS$}", encode(&of.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: &str, incarnation: Incarnation) -> MemberId {
        MemberId { node: node.into(), incarnation }
    }

    #[test]
    fn keys_are_read_as_they_were_built() {
        for (prefix, root) in [("/berth", "/berth/my%2Fhome/v1/"), ("a/b/", "/a/b/my%2Fhome/v1/")] {
            let keys = Keys::new(prefix, "my/home");
            assert_eq!(keys.root(), root);
            for name in ["a", "ä b/c%2F", "..", "a\u{0}b", "$x+#"] {
                let (text, of) = (Arc::<str>::from(name), id(name, 42));
                let user = DirectoryKey::User(name.into());
                let ban = DirectoryKey::Ban { kind: BanKind::Address, name: name.into() };
                let (node, client_id, topic) = (text.clone(), text.clone(), text.clone());
                let built = [
                    (keys.member(name), Key::Member { node: node.clone() }),
                    (keys.leader(0x7f3), Key::Leader),
                    (keys.custody(&of), Key::Custody { of: of.clone() }),
                    (keys.journal(u64::MAX - 1), Key::Journal { journal: u64::MAX - 1 }),
                    (keys.session(name), Key::Session { client_id: client_id.clone() }),
                    (keys.route_page(&of, u64::MAX), Key::Routes { of: of.clone(), page: u64::MAX }),
                    (keys.retained(name), Key::Retained { topic }),
                    (keys.eviction(name, name), Key::Eviction { node, client_id }),
                    (keys.directory(&user), Key::Directory(user)),
                    (keys.directory(&ban), Key::Directory(ban)),
                    (keys.directory(&DirectoryKey::Rules), Key::Directory(DirectoryKey::Rules)),
                    (keys.restored(), Key::Restored),
                    (keys.forgotten(u64::MAX - 7), Key::Forgotten { journal: u64::MAX - 7 }),
                ];
                for (key, expected) in built {
                    assert!(key.starts_with(root), "{key}");
                    assert_eq!(keys.parse(key.as_bytes()), Some(expected), "{key}");
                }
            }
        }
        assert_eq!(Keys::new("", "x").root(), "/x/v1/");
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_numbers() {
        let keys = Keys::new("/berth", "c");
        let numbers = [0, 1, 9, 10, 99, 1 << 40, u64::MAX];
        assert!(numbers.map(|n| keys.custody(&id("a", n))).is_sorted());
        assert!(numbers.map(|n| keys.route_page(&id("a", 7), n)).is_sorted());
    }

    #[test]
    fn no_node_is_in_the_prefix_of_another() {
        let keys = Keys::new("/berth", "c");
        assert!(!keys.custody(&id("ab", 1)).starts_with(&keys.custodies_of("a")));
        assert!(!keys.custody(&id("a/b", 1)).starts_with(&keys.custodies_of("a")));
        assert!(!keys.route_page(&id("a", 10), 1).starts_with(&keys.routes_of(&id("a", 1))));
        assert!(!keys.eviction("a/b", "x").starts_with(&keys.evictions_of("a")));
    }

    #[test]
    fn foreign_keys_are_not_read() {
        let keys = Keys::new("/berth", "c");
        for rest in
            ["", "members", "members/", "members/a/b", "members/a b", "members/%61", "custody/a/1", "x/y"]
                .iter()
                .chain(&[
                    "custody/a/0000000000000000000x",
                    "custody/a/99999999999999999999",
                    "routes/a/1",
                    "journals/1",
                    "journals/000000000000000A",
                    "retained/",
                    "users/",
                    "users/a/b",
                    "acl/other",
                    "bans/client/",
                    "bans/node/a",
                    "restored/",
                    "forgotten/12",
                    "forgotten/000000000000000g",
                ])
        {
            assert_eq!(keys.parse(format!("/berth/c/v1/{rest}").as_bytes()), None, "{rest}");
        }
        assert_eq!(keys.parse(b"/berth/c/v2/members/a"), None);
        assert_eq!(keys.parse(b"/berth/c/v1/members/\xff"), None);
    }
}

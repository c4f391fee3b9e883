//! Nobody is served twice at once (G1): once a client has heard CONNACK on a new connection, nothing that it sends on an older
//! one is answered any more, on whatever node that is.

use crate::history::{Event, Name};
use std::collections::HashMap;

#[derive(Debug, Default)]
struct Connection {
    asked: u64,
    answered: u64,
    /// What it had asked when a newer one was accepted.
    asked_before: Option<u64>,
    /// The connections that had been accepted when this one sent CONNECT.
    older: Vec<u64>,
    accepted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Owner(HashMap<Name, HashMap<u64, Connection>>);

impl Owner {
    pub(super) fn on(&mut self, event: &Event) -> Option<String> {
        match *event {
            Event::Connecting { by, conn, .. } => {
                let all = self.0.entry(by).or_default();
                // Of two that connect at the same time either may be served last.
                let older = all.iter().filter(|(_, c)| c.accepted).map(|(no, _)| *no).collect();
                all.insert(conn, Connection { older, ..Connection::default() });
            }
            Event::Connected { by, conn, .. } => {
                let all = self.0.entry(by).or_default();
                let newest = all.entry(conn).or_default();
                newest.accepted = true;
                for no in std::mem::take(&mut newest.older) {
                    if no != conn
                        && let Some(old) = all.get_mut(&no)
                    {
                        old.asked_before.get_or_insert(old.asked);
                    }
                }
            }
            Event::Asked { by, conn } => self.0.entry(by).or_default().entry(conn).or_default().asked += 1,
            Event::Answered { by, conn } => {
                let connection = self.0.entry(by).or_default().entry(conn).or_default();
                connection.answered += 1;
                if connection.asked_before.is_some_and(|before| connection.answered > before) {
                    return Some(format!(
                        "client {by} is served on connection {conn} after a newer one was accepted"
                    ));
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;

    /// `c1` CONNECT, `+1` CONNACK, `?1` asked, `!1` answered.
    fn checked(text: &str) -> Vec<String> {
        let by = Name::from("c");
        let event = |word: &str| {
            let conn = word[1..].parse().unwrap();
            match &word[..1] {
                "c" => Event::Connecting { by, conn, clean: false, will: None },
                "+" => Event::Connected { by, conn, clean: false, present: conn > 1 },
                "?" => Event::Asked { by, conn },
                _ => Event::Answered { by, conn },
            }
        };
        check(&text.split(' ').map(event).collect::<Vec<_>>())
    }

    #[test]
    fn an_old_connection_is_served_no_more() {
        for good in
            ["c1 +1 ?1 !1 c2 +2 ?2 !2", "c1 +1 ?1 c2 +2 !1 ?1", "c1 +1 c2 ?1 !1 +2", "c1 c2 +1 +2 ?1 !1"]
        {
            assert_eq!(checked(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["c1 +1 c2 +2 ?1 !1", "c1 +1 ?1 c2 +2 ?1 !1 !1", "c1 +1 c2 +2 c3 +3 ?2 !2"] {
            let broken = checked(bad);
            assert!(broken.len() == 1 && broken[0].contains("after a newer"), "{bad}: {broken:?}");
        }
    }
}

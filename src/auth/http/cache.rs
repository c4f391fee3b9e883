//! What the hook said lately of the same question: a bounded number, for a bounded time. Questions are kept as a keyed hash.

use super::Checked;
use crate::auth::method::Request;
use crate::auth::password::scram::hmac_sha256;
use crate::clock::Time;
use crate::hashing::HashMap;
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::VecDeque;
use std::time::Duration;

type Key = [u8; 32];

#[derive(Default)]
struct Table {
    known: HashMap<Key, (Time, Checked)>,
    /// In the order in which they came.
    order: VecDeque<(Key, Time)>,
}

/// What the hook said lately of the same question: a bounded number, for a bounded time.
pub struct Cache {
    max: usize,
    ttl_ms: u64,
    secret: [u8; 32],
    table: Mutex<Table>,
}

impl Cache {
    /// For so many answers; `None` if the system gives no random numbers.
    pub fn new(max: usize, ttl: Duration) -> Option<Cache> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).ok()?;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Some(Cache { max, ttl_ms, secret, table: Mutex::default() })
    }

    fn key(&self, request: &Request) -> Key {
        let door = &request.door;
        let peer = door.peer.ip().to_string();
        let subject = door.certificate.as_ref().map(|c| c.subject.as_str());
        let name = request.username.as_ref().map(|name| name.as_bytes());
        let password = request.password.as_ref().map(|p| p.as_slice());
        let mut text = zeroize::Zeroizing::new(Vec::new());
        let parts = [
            Some(request.client_id.as_bytes()),
            name,
            password,
            Some(door.listener.as_bytes()),
            Some(peer.as_bytes()),
            subject.map(str::as_bytes),
            Some(request.version.name().as_bytes()),
        ];
        for part in parts {
            // With its length: two questions never look the same.
            let len = part.map_or(u64::MAX, |p| p.len() as u64);
            text.extend_from_slice(&len.to_le_bytes());
            text.extend_from_slice(part.unwrap_or_default());
        }
        hmac_sha256(&self.secret, &[&text])
    }

    /// What is known of a question.
    pub fn get(&self, request: &Request, now: Time) -> Option<Checked> {
        if self.max == 0 {
            return None;
        }
        let table = self.table.lock();
        let (until, checked) = table.known.get(&self.key(request))?;
        // An account that has ended meanwhile is asked about again.
        let ended = matches!(checked, Checked::Accept(a) if a.expires_at.is_some_and(|at| at <= now));
        (now < *until && !ended).then(|| checked.clone())
    }

    /// Keeps an answer.
    pub fn put(&self, request: &Request, checked: &Checked, now: Time) {
        if self.max == 0 || self.ttl_ms == 0 {
            return;
        }
        let (key, until) = (self.key(request), now.plus_ms(self.ttl_ms));
        let mut table = self.table.lock();
        let Table { known, order } = &mut *table;
        known.insert(key, (until, checked.clone()));
        order.push_back((key, until));
        while order.len() > self.max || order.front().is_some_and(|(_, until)| *until <= now) {
            let Some((key, until)) = order.pop_front() else { break };
            // Unless it was asked again since.
            if known.get(&key).is_some_and(|(at, _)| *at == until) {
                known.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::Version;
    use crate::ports::{Account, Door};
    use zeroize::Zeroizing;

    fn request(name: &str, password: &str) -> Request {
        Request {
            version: Version::V5,
            client_id: "c".into(),
            username: Some(Zeroizing::new(name.to_owned())),
            password: Some(Zeroizing::new(password.as_bytes().to_vec())),
            door: Door::tcp("192.0.2.1:5".parse().unwrap()),
        }
    }

    #[test]
    fn answers_are_kept_for_a_time_and_bounded_in_number() {
        let cache = Cache::new(3, Duration::from_secs(10)).unwrap();
        let at = |s: u64| Time(1_000_000 + s * 1000);
        let yes = Checked::Accept(Account { user: Some("a".into()), ..Account::default() });
        cache.put(&request("a", "x"), &yes, at(0));
        assert_eq!(cache.get(&request("a", "x"), at(9)), Some(yes.clone()));
        let older = Request { version: Version::V31, ..request("a", "x") };
        for other in [request("a", "y"), request("ax", ""), request("", "ax"), older] {
            assert_eq!(cache.get(&other, at(9)), None);
        }
        assert_eq!(cache.get(&request("a", "x"), at(10)), None, "too old");
        for n in 0..10 {
            cache.put(&request("n", &n.to_string()), &Checked::NotMine, at(20));
        }
        let known = (0..10).filter(|n| cache.get(&request("n", &n.to_string()), at(20)).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [7, 8, 9]);
        let table = cache.table.lock();
        assert_eq!((table.known.len(), table.order.len()), (3, 3));
    }

    #[test]
    fn an_account_that_has_ended_is_asked_about_again() {
        let cache = Cache::new(3, Duration::from_secs(10)).unwrap();
        let brief = Account { user: Some("a".into()), expires_at: Some(Time(5_000)), ..Account::default() };
        cache.put(&request("a", "x"), &Checked::Accept(brief), Time(0));
        assert!(cache.get(&request("a", "x"), Time(4_999)).is_some());
        assert!(cache.get(&request("a", "x"), Time(5_000)).is_none());
        assert!(Cache::new(0, Duration::from_secs(10)).unwrap().get(&request("a", "x"), Time(0)).is_none());
    }
}

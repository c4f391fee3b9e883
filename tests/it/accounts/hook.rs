//! An HTTP hook that says who clients are: one that answers, one that hangs, one that lies, one that is not there.

use super::{Files, answer};
use crate::broker::{Broker, Setup, free_address};
use crate::client::Dial;
use crate::wait;
use berth::clock;
use berth::mqtt::Reason;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a hook was asked: the head of the request, and its body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that answers each question as `say` says: status and body; `None` = it hangs.
fn hook(at: SocketAddr, say: impl Fn(&Value) -> Option<(u16, String)> + Send + Sync + 'static) -> Asked {
    let (asked, say, listener) = (Asked::default(), Arc::new(say), TcpListener::bind(at).unwrap());
    let all = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (say, all) = (say.clone(), all.clone());
            std::thread::spawn(move || serve(stream, &all, &*say));
        }
    });
    asked
}

fn serve(stream: TcpStream, asked: &Asked, say: &dyn Fn(&Value) -> Option<(u16, String)>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let question: Value = serde_json::from_slice(&body).ok()?;
        asked.lock().unwrap().push((head, question.clone()));
        let Some((status, body)) = say(&question) else {
            // Until the broker gives up.
            let _ = reader.read(&mut [0]);
            return None;
        };
        write!(writer, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    }
}

fn setup(at: SocketAddr) -> Setup {
    Setup::new().set("auth.http.url", &format!("http://{at}/mqtt")).set("auth.http.timeout", "500ms")
}

#[test]
fn the_hook_is_asked_once_and_its_word_counts() {
    let (files, at) = (Files::new(), free_address());
    let token = files.write("token", "hook-token\n");
    let asked = hook(at, |q| {
        Some((
            200,
            match q["username"].as_str() {
                Some("alice") if q["password"] == "right" => {
                    json!({"result": "allow", "groups": ["ops"]}).to_string()
                }
                Some("device") => {
                    json!({"result": "allow", "user": "renamed", "acl": {"publish": ["a/#"]}}).to_string()
                }
                Some("brief") => {
                    json!({"result": "allow", "expires_at": clock::now().as_millis() / 1000 + 2}).to_string()
                }
                Some("other") => json!({"result": "ignore"}).to_string(),
                _ => json!({"result": "deny"}).to_string(),
            },
        ))
    });
    let broker = setup(at).set("auth.http.token_file", token.to_str().unwrap()).start();
    let connect =
        |id: &str, name: &str, password: &str| answer(&Dial::v5(id).user(name, password), broker.mqtt);
    assert_eq!(connect("a", "alice", "right"), Reason::Success);
    assert_eq!(connect("a", "alice", "right"), Reason::Success);
    assert_eq!(connect("a", "alice", "wrong"), Reason::NotAuthorized);
    assert_eq!(connect("a", "alice", "wrong"), Reason::NotAuthorized);
    assert_eq!(connect("b", "device", ""), Reason::Success);
    assert_eq!(connect("c", "other", "x"), Reason::BadUserNameOrPassword);
    let mut brief = Dial::v5("d").user("brief", "").connect(broker.mqtt);
    assert_eq!(brief.expect_closed(), Some(Reason::MaximumConnectTime));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 5, "the same question once: {asked:?}");
    let (head, question) = &asked[0];
    assert!(head.starts_with("POST /mqtt HTTP/1.1") && head.contains("Bearer hook-token"), "{head}");
    assert_eq!(
        (&question["client_id"], &question["listener"], &question["protocol"]),
        (&json!("a"), &json!("tcp"), &json!("5.0"))
    );
    assert!(question["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(!broker.log().contains("hook-token"));
}

#[test]
fn a_hook_that_hangs_or_lies_lets_nobody_in() {
    let at = free_address();
    hook(at, |q| match q["username"].as_str().unwrap_or_default() {
        "hangs" => None,
        "fails" => Some((500, json!({"result": "allow"}).to_string())),
        "nonsense" => Some((200, "allow".to_owned())),
        "large" => Some((200, " ".repeat(1 << 20))),
        "odd" => Some((200, json!({"result": "allow", "user": "a\nb"}).to_string())),
        "wide" => Some((200, json!({"result": "allow", "acl": {"subscribe": ["a/#/b"]}}).to_string())),
        _ => Some((200, json!({"result": "allow"}).to_string())),
    });
    let broker = setup(at).start();
    let connect = |name: &str| answer(&Dial::v5("x").user(name, "secret"), broker.mqtt);
    // One at a time, with an answer in between, so that the hook is not left alone.
    for name in ["hangs", "fails", "nonsense", "large", "odd", "wide"] {
        assert_eq!(connect(name), Reason::ServerUnavailable, "{name}");
        assert_eq!(connect(&format!("good-{name}")), Reason::Success);
    }
    assert!(!broker.log().contains("secret"));
}

#[test]
fn a_hook_that_is_gone_is_left_alone_and_found_again() {
    let at = free_address();
    let broker: Broker = setup(at).start();
    let connect = |name: &str| answer(&Dial::v5("x").user(name, "y"), broker.mqtt);
    for n in 0..6 {
        assert_eq!(connect(&format!("u{n}")), Reason::ServerUnavailable);
    }
    assert!(broker.log().contains("the HTTP hook fails and is left alone"), "{}", broker.log());
    hook(at, |_| Some((200, json!({"result": "allow"}).to_string())));
    wait::until_true("it is asked again", || connect("alice") == Reason::Success);
    assert!(broker.log().contains("the HTTP hook answers again"), "{}", broker.log());
    assert_eq!(broker.log().matches("left alone for a moment: clients").count(), 1);
}

/// A flood of one address takes turns from clients that come from elsewhere, and is no failure of the hook.
#[test]
fn many_questions_are_no_failures_of_the_hook() {
    let at = free_address();
    hook(at, |q| {
        std::thread::sleep(std::time::Duration::from_millis(150));
        let good = q["username"] == "alice";
        Some((200, json!({"result": if good { "allow" } else { "deny" }}).to_string()))
    });
    let broker = setup(at).set("auth.http.parallel", "1").start();
    let flood: Vec<_> = (0..40)
        .map(|n| {
            let to = broker.mqtt;
            std::thread::spawn(move || answer(&Dial::v5("x").user(&format!("eve{n}"), "y"), to))
        })
        .collect();
    let answers: Vec<Reason> = flood.into_iter().map(|eve| eve.join().unwrap()).collect();
    let of = |reason: Reason| answers.iter().filter(|a| **a == reason).count();
    assert_eq!(of(Reason::NotAuthorized) + of(Reason::ServerBusy), answers.len(), "{answers:?}");
    assert!(of(Reason::ServerBusy) > 0, "{answers:?}");
    assert_eq!(answer(&Dial::v5("a").user("alice", "y"), broker.mqtt), Reason::Success);
    assert!(!broker.log().contains("left alone"), "{}", broker.log());
}

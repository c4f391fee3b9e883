use super::*;
use crate::node::administer::{Purge, Purged};
use crate::node::inspect::{Judged, Question, SessionState, SessionSummary};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

#[derive(Default)]
struct Fake(AtomicBool, Arc<Slow>);

/// A request that takes its time.
#[derive(Default)]
struct Slow {
    begun: Notify,
    may_end: Notify,
    ended: Notify,
}

impl AclOperator for Fake {
    fn acl_rules(&self, after: usize, limit: usize) -> Result<AclPage, ApiError> {
        // Says what it was asked.
        Err(ApiError::Conflict(format!("rules after {after}, {limit}")))
    }

    fn acl_judge(&self, question: Question) -> Answer<Judged> {
        Box::pin(async move { Err(ApiError::Unknown(format!("{} {}", question.client, question.topic))) })
    }

    fn acl_change(&self, change: AclChange) -> Answer<AclEdited> {
        let rules = usize::from(matches!(change, AclChange::Add { at: Some(7), yes: true, .. }));
        Box::pin(async move { Ok(AclEdited { changed: true, rules, ..AclEdited::default() }) })
    }
}

impl BanOperator for Fake {
    fn bans(&self) -> Result<BanList, ApiError> {
        Ok(BanList::default())
    }

    fn ban(&self, order: BanOrder) -> Answer<Banned> {
        Box::pin(async move { Err(ApiError::Conflict(order.name)) })
    }

    fn unban(&self, order: UnbanOrder) -> Answer<Banned> {
        Box::pin(async move { Err(ApiError::Unknown(order.name)) })
    }
}

impl UpkeepOperator for Fake {
    fn listeners(&self) -> Result<ListenerList, ApiError> {
        Ok(ListenerList { listeners: Vec::new() })
    }

    fn config(&self) -> ShownConfig {
        ShownConfig { file: None, options: Vec::new() }
    }

    fn purge(&self, which: Purge, really: bool) -> Answer<Purged> {
        let purged = Purged { clients: vec![which.pattern], ended: usize::from(really), ..Purged::default() };
        Box::pin(async move { Ok(purged) })
    }

    fn publish(&self, publication: Publication) -> Answer<Published> {
        let Publication { topic, payload, .. } = publication;
        Box::pin(async move { Ok(Published { topic, bytes: payload.len(), matched: false }) })
    }
}

impl UserOperator for Fake {
    fn users(&self, _: &str, _: usize) -> Answer<UserPage> {
        let page = UserPage { source: "etcd", file: String::new(), users: Vec::new(), total: 0, next: None };
        Box::pin(std::future::ready(Ok(page)))
    }

    fn user(&self, name: &str) -> Answer<ShownUser> {
        Box::pin(std::future::ready(Err(ApiError::no_user(name))))
    }

    fn add_user(&self, order: UserOrder) -> Answer<UserChanged> {
        Box::pin(async move { Err(ApiError::Conflict(order.name)) })
    }

    fn change_user(&self, order: UserOrder) -> Answer<UserChanged> {
        Box::pin(async move { Err(ApiError::Unknown(order.name)) })
    }

    fn remove_user(&self, name: &str) -> Answer<UserChanged> {
        Box::pin(std::future::ready(Err(ApiError::no_user(name))))
    }
}

impl ReloadOperator for Fake {
    fn reload(&self) -> Answer<Reloaded> {
        Box::pin(async { Ok(Reloaded { changed: vec!["log.level".to_owned()], ..Reloaded::default() }) })
    }

    fn log_level(&self, level: &str) -> Result<LogLevel, ApiError> {
        Err(ApiError::Invalid(level.to_owned()))
    }
}

impl Operator for Fake {
    fn ready(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("the journal is failing: disk full".to_owned())
        }
    }

    fn status(&self) -> Status {
        Status {
            mode: "standalone",
            cluster: None,
            node: NodeStatus {
                id: "n1".to_owned(),
                version: "1.2.3",
                ready: self.ready().is_ok(),
                queued_messages: 6,
                journal: Some(JournalStatus { kind: "redb", healthy: true, error: None, size_bytes: 7 }),
                ..NodeStatus::default()
            },
        }
    }

    fn collect(&self, metrics: &Metrics) {
        metrics.retained_messages.set(4);
    }

    fn list_sessions(&self, query: SessionQuery, everywhere: bool) -> Answer<SessionPage> {
        // Says what it was asked.
        let session = SessionSummary {
            client_id: format!("{}/{}/{everywhere}", query.after, query.prefix),
            node: String::new(),
            state: SessionState::Dormant,
            persistent: true,
            subscriptions: query.limit,
            queued: 0,
            in_flight: 0,
        };
        Box::pin(async { Ok(SessionPage { sessions: vec![session], ..SessionPage::default() }) })
    }

    fn find_session(&self, client_id: &str) -> Answer<Located> {
        let error = ApiError::Unknown(format!("no {client_id:?}"));
        Box::pin(async { Err(error) })
    }

    fn kick(&self, client_id: &str) -> Answer<Kicked> {
        let kicked = Kicked { client_id: client_id.to_owned(), node: None, closed: true };
        Box::pin(async { Ok(kicked) })
    }

    fn routes(&self, topic: &str) -> Result<Routes, ApiError> {
        Err(ApiError::Invalid(topic.to_owned()))
    }

    fn retained(&self, filter: &str, limit: usize) -> Result<RetainedPage, ApiError> {
        Err(ApiError::Unavailable(format!("{filter} {limit}")))
    }

    fn drain(&self) -> Result<Draining, ApiError> {
        Ok(Draining { node: "n1".to_owned(), already: false, sessions: 3 })
    }

    fn forget(&self, node: &str) -> Answer<Forgotten> {
        let (error, slow) = (ApiError::Conflict(format!("{node} lives")), self.1.clone());
        let takes_time = node == "slow";
        Box::pin(async move {
            if takes_time {
                slow.begun.notify_one();
                slow.may_end.notified().await;
                slow.ended.notify_one();
            }
            Err(error)
        })
    }
}

struct Running {
    address: SocketAddr,
    source: Arc<Fake>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn start() -> Running {
    start_with(HTTP_IDLE_MAX).await
}

async fn start_with(idle_max: Duration) -> Running {
    start_guarded(idle_max, Access::default(), Audit::default()).await
}

async fn start_guarded(idle_max: Duration, access: Access, audit: Audit) -> Running {
    let mut server = HttpServer::bind("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    server.idle_max = idle_max;
    let address = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let source = Arc::new(Fake::default());
    let shared = Shared { source: source.clone(), metrics: Arc::new(Metrics::new()), access, audit };
    let run = server.run(shared, async move {
        let _ = stopped.await;
    });
    Running { address, source, stop, task: tokio::spawn(run) }
}

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn pages() {
    let running = start().await;
    let (code, body) = ask(running.address, "GET /health").await;
    assert_eq!((code, &json(&body)["status"]), (200, &"ok".into()));

    let (code, body) = ask(running.address, "GET /ready").await;
    assert_eq!((code, &json(&body)["reason"]), (503, &"the journal is failing: disk full".into()));
    running.source.0.store(true, Ordering::Relaxed);
    assert_eq!(ask(running.address, "GET /ready").await.0, 200);

    let (code, body) = ask(running.address, "GET /cluster/status").await;
    let status = json(&body);
    assert_eq!((code, &status["mode"], &status["node"]["id"]), (200, &"standalone".into(), &"n1".into()));
    assert_eq!(
        status["node"]["journal"],
        serde_json::json!({"type": "redb", "healthy": true, "size_bytes": 7})
    );

    let (code, body) = ask(running.address, "GET /metrics").await;
    assert_eq!(code, 200);
    assert!(body.contains("\nberth_retained_messages 4\n"), "{body}");

    let (code, body) = ask(running.address, "GET /api").await;
    assert_eq!((code, &json(&body)["path"]), (404, &"/api".into()));
    let (code, body) = ask(running.address, "POST /health").await;
    assert_eq!((code, &json(&body)["error"]), (405, &"method not allowed".into()));
}

#[tokio::test]
async fn stops_even_if_a_client_lingers() {
    let running = start().await;
    let mut lingering = TcpStream::connect(running.address).await.unwrap();
    lingering.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
    assert_eq!(ask(running.address, "GET /health").await.0, 200);
    running.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), running.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let running = start().await;
    let error = HttpServer::bind(running.address, None).await.unwrap_err().to_string();
    let start = format!("cannot listen on {} (http.address): ", running.address);
    assert!(error.starts_with(&start), "{error}");
}

#[tokio::test]
async fn the_api_passes_on_what_it_is_asked() {
    let running = start().await;
    let cases = [
        ("GET /api/v1/sessions", 200, "//false"),
        ("GET /api/v1/sessions?limit=7&after=a%2Fb&prefix=x&cluster=true", 200, "a/b/x/true"),
        ("GET /api/v1/sessions?limit=0", 400, "from 1 to 1000"),
        ("GET /api/v1/sessions?limit=x", 400, "limit"),
        ("GET /api/v1/sessions?colour=red", 400, "colour"),
        ("GET /api/v1/sessions/a%2Fb%20c", 404, "a/b c"),
        ("DELETE /api/v1/sessions/a%2Fb", 200, "a/b"),
        ("GET /api/v1/routes?topic=a%2F%23", 400, "a/#"),
        ("GET /api/v1/routes", 400, "topic"),
        ("GET /api/v1/retained", 503, "# 100"),
        ("GET /api/v1/retained?filter=a%2F%2B&limit=3", 503, "a/+ 3"),
        ("POST /api/v1/node/drain", 202, "\"sessions\":3"),
        ("POST /api/v1/cluster/forget/n2", 409, "n2 lives"),
        ("GET /api/v1/node/drain", 405, "method not allowed"),
        ("GET /api/v1/nothing", 404, "not found"),
    ];
    for (request, expected, word) in cases {
        let (code, body) = ask(running.address, request).await;
        assert_eq!(code, expected, "{request}: {body}");
        let body = json(&body).to_string();
        assert!(body.contains(word), "{request}: {word:?} is not in {body}");
    }
    let forbidden = "DELETE /api/v1/sessions/a HTTP/1.1\r\norigin: http://x\r\nx:";
    assert_eq!(ask(running.address, forbidden).await.0, 403);
}

#[tokio::test]
async fn what_takes_long_is_waited_for() {
    let idle_max = Duration::from_millis(50);
    let running = start_with(idle_max).await;
    let slow = running.source.1.clone();
    let asked = tokio::spawn(ask(running.address, "POST /api/v1/cluster/forget/slow"));
    slow.begun.notified().await;
    // Another connection that says nothing is closed meanwhile: so long is too long.
    for _ in 0..3 {
        let mut idle = TcpStream::connect(running.address).await.unwrap();
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    }
    assert!(!asked.is_finished());
    slow.may_end.notify_one();
    assert_eq!(asked.await.unwrap().0, 409);
}

#[tokio::test]
async fn to_forget_a_node_goes_on_when_whoever_asked_is_gone() {
    let running = start().await;
    let slow = running.source.1.clone();
    let asked = tokio::spawn(ask(running.address, "POST /api/v1/cluster/forget/slow"));
    slow.begun.notified().await;
    asked.abort();
    assert!(asked.await.is_err());
    // Served after the connection's end is noticed, or before: it makes no difference.
    assert_eq!(ask(running.address, "GET /health").await.0, 200);
    slow.may_end.notify_one();
    tokio::time::timeout(Duration::from_secs(20), slow.ended.notified()).await.unwrap();
}

/// The lines of an audit log, without when and whence.
fn audited(path: &std::path::Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines: Vec<_> = text.lines().map(json).collect();
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        assert!(line.remove("at").unwrap().as_u64() > Some(1_700_000_000_000));
        assert!(line.remove("from").unwrap().as_str().unwrap().starts_with("127.0.0.1:"));
    }
    lines
}

#[tokio::test]
async fn tokens_say_who_may_do_what_and_orders_are_written_down() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (admin, read) =
        (file("admin", "alice aaaaaaaaaaaaaaaaaaaa"), file("read", "bob bbbbbbbbbbbbbbbbbbbb"));
    let log = dir.path().join("audit.jsonl");
    // Status codes without a token, with a wrong one, with one that may read, with one that may change.
    let cases = [
        ("GET /health", [200, 200, 200, 200]),
        ("GET /ready", [503, 503, 503, 503]),
        ("GET /cluster/status", [401, 401, 200, 200]),
        ("GET /api/v1/sessions", [401, 401, 200, 200]),
        ("GET /api/v1/sessions/a", [401, 401, 404, 404]),
        ("DELETE /api/v1/sessions/a", [401, 401, 403, 200]),
        ("POST /api/v1/node/drain", [401, 401, 403, 202]),
        ("POST /api/v1/cluster/forget/n2", [401, 401, 403, 409]),
        ("GET /api/v1/nothing", [404, 404, 404, 404]),
    ];
    let presented = [
        "",
        "\r\nauthorization: Bearer cccccccccccccccccccc",
        "\r\nauthorization: Bearer bbbbbbbbbbbbbbbbbbbb",
        "\r\nauthorization: Bearer aaaaaaaaaaaaaaaaaaaa",
    ];
    for open_metrics in [true, false] {
        let access =
            Access::new(Tokens::read(Some(&admin), Some(&read)).unwrap().map(Arc::new), open_metrics);
        let audit = Audit::open(Some(log.clone())).unwrap();
        let running = start_guarded(HTTP_IDLE_MAX, access, audit).await;
        let metrics = ("GET /metrics", if open_metrics { [200; 4] } else { [401, 401, 200, 200] });
        for (request, expected) in cases.into_iter().chain([metrics]) {
            for (token, expected) in presented.into_iter().zip(expected) {
                // The rest of the head follows what is asked.
                let (method, path) = request.split_once(' ').unwrap();
                let asked = format!("{method} {path} HTTP/1.1{token}\r\nx:");
                let (code, body) = ask(running.address, &asked).await;
                assert_eq!(code, expected, "{request} {token}: {body}");
            }
        }
    }
    let line = |who: &str, role: &str, action: &str, subject: &str, status: u16, outcome: &str| {
        serde_json::json!({
            "who": who, "role": role, "action": action, "subject": subject, "status": status, "outcome": outcome,
        })
    };
    let once = [
        line("bob", "read-only", "refused", "DELETE /api/v1/sessions/a", 403, "refused"),
        line("alice", "admin", "session kick", "a", 200, "done"),
        line("bob", "read-only", "refused", "POST /api/v1/node/drain", 403, "refused"),
        line("alice", "admin", "node drain", "", 202, "done"),
        line("bob", "read-only", "refused", "POST /api/v1/cluster/forget/n2", 403, "refused"),
        line("alice", "admin", "cluster forget", "n2", 409, "failed"),
    ];
    assert_eq!(audited(&log), [&once[..], &once[..]].concat());
    assert!(!std::fs::read_to_string(&log).unwrap().contains("aaaa"), "no token is written down");
}

#[test]
fn an_audit_log_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Audit::open(Some(dir.path().join("none/audit"))).unwrap_err().to_string();
    assert!(error.starts_with("audit.file: cannot write") && error.contains("none/audit"), "{error}");
}

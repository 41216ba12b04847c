//! Pages of the audit log of half a million entries, as the database answers them.

use kohakuriver_store::{AuditFilter, NewAudit, Store};
use tokio::runtime::Runtime;

use crate::sample::{Line, timed};

const ENTRIES: usize = 500_000;
const AT_ONCE: usize = 5_000;
const ROUNDS: usize = 30;
const ACTIONS: [&str; 8] = [
    "vps.create",
    "vps.stop",
    "vps.restart",
    "session.begin",
    "session.end",
    "auth.login",
    "auth.token.create",
    "file.read",
];

pub fn run() -> Vec<Line> {
    let runtime = Runtime::new().expect("threads");
    let dir = tempfile::tempdir().expect("a place for the database");
    let store = runtime.block_on(filled(&dir.path().join("host.db")));
    let page = |name: &str, filter: AuditFilter| {
        let samples: Vec<_> = (0..ROUNDS)
            .map(|_| {
                timed(|| {
                    let page = runtime.block_on(store.list_audit(&filter)).expect("a page");
                    assert!(!page.is_empty(), "{name}");
                })
            })
            .collect();
        Line::millis(format!("audit log, {ENTRIES} entries: {name}"), &samples)
    };
    let any = AuditFilter { limit: 100, ..AuditFilter::default() };
    let text = |text: &str| Some(text.to_owned());
    vec![
        page("the newest", any.clone()),
        page("of an actor", AuditFilter { actor: text("user 7"), ..any.clone() }),
        page("of an actor with three entries", AuditFilter { actor: text("rare"), ..any.clone() }),
        page("of an area (vps)", AuditFilter { action: text("vps"), ..any.clone() }),
        page("of a VPS", AuditFilter { object: text("vps 77"), ..any.clone() }),
        page(
            "of an actor, an area, since a time",
            AuditFilter {
                actor: text("user 7"),
                action: text("auth"),
                since_ms: Some(250_000),
                ..any.clone()
            },
        ),
        page(
            "what follows the last but ten (--follow)",
            AuditFilter { after: i64::try_from(ENTRIES - 10).ok(), ..any },
        ),
    ]
}

async fn filled(path: &std::path::Path) -> Store {
    let store = Store::open(path).await.expect("a database");
    for start in (0..ENTRIES).step_by(AT_ONCE) {
        let entries: Vec<_> = (start..start + AT_ONCE).map(entry).collect();
        store.append_audit(&entries).await.expect("room for the log");
    }
    store
}

fn entry(number: usize) -> NewAudit {
    let actor = match number % (ENTRIES / 3) {
        0 => "rare".to_owned(),
        _ => format!("user {}", number % 199),
    };
    NewAudit {
        at_ms: i64::try_from(number).unwrap_or_default(),
        actor,
        actor_id: Some(1),
        address: "192.0.2.1".to_owned(),
        action: ACTIONS[number / 7 % ACTIONS.len()].to_owned(),
        object: format!("vps {}", number % 997),
        result: "ok".to_owned(),
        detail: "forward tcp 8080, after 12 s".to_owned(),
    }
}

//! Every path of the API and every WebSocket, called with every role and every relation to an
//! instance: the responses are those of the table. A path that is missing here fails.

use std::collections::BTreeSet;

use anyhow::Result;
use kohakuriver_testkit::{FakeRunner, Person, Reaction, TestHost};
use serde_json::{Value, json};

/// Permissions in the order of [`Cast::all`]: anonymous, viewer, user, operator, admin; then users
/// with a share (view, use, manage), and the owner. `x` is allowed, `-` is forbidden, `h` gets "not
/// found".
struct Row(&'static str, &'static str, &'static str);

const NOBODY_AND_ROLES: &str = "nobody viewer user operator admin | view use manage owner";

#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row("GET", "/welcome",                                  "xxxxx xxxx"),
    Row("GET", "/openapi.json",                             "-xxxx xxxx"),
    Row("GET", "/api/health",                               "xxxxx xxxx"),
    Row("GET", "/api/nodes",                                "-xxxx xxxx"),
    Row("GET", "/api/nodes/{name}",                         "-xxxx xxxx"),
    Row("GET", "/api/nodes/{name}/health",                  "-xxxx xxxx"),
    Row("POST", "/api/nodes/{name}/drain",                  "---xx ----"),
    Row("POST", "/api/nodes/{name}/undrain",                "---xx ----"),
    Row("PATCH", "/api/nodes/{name}/labels",                "---xx ----"),
    Row("DELETE", "/api/nodes/{name}",                      "----x ----"),
    Row("POST", "/api/nodes/tokens",                        "----x ----"),
    Row("GET", "/api/vm/images/{hostname}",                 "-xxxx xxxx"),
    Row("GET", "/api/vps/vm-instances",                     "----x ----"),
    Row("DELETE", "/api/vps/vm-instances/{task}",           "----x ----"),
    // Accounts. Public paths depend on the request, not on the caller.
    Row("GET", "/api/auth/status",                          "xxxxx xxxx"),
    Row("GET", "/api/auth/ca",                              "xxxxx xxxx"),
    Row("POST", "/api/auth/login",                          "xxxxx xxxx"),
    Row("POST", "/api/auth/logout",                         "xxxxx xxxx"),
    Row("POST", "/api/auth/register",                       "xxxxx xxxx"),
    Row("POST", "/api/auth/password/reset",                 "xxxxx xxxx"),
    Row("GET", "/api/auth/oidc/start",                      "xxxxx xxxx"),
    Row("GET", "/api/auth/oidc/callback",                   "xxxxx xxxx"),
    Row("GET", "/api/auth/oidc/confirm",                    "xxxxx xxxx"),
    Row("POST", "/api/auth/oidc/confirm",                   "xxxxx xxxx"),
    Row("POST", "/api/auth/oidc/token",                     "xxxxx xxxx"),
    Row("GET", "/api/auth/me",                              "xxxxx xxxx"),
    Row("POST", "/api/auth/password",                       "-xxxx xxxx"),
    Row("GET", "/api/auth/tokens",                          "-xxxx xxxx"),
    Row("POST", "/api/auth/tokens/create",                  "-xxxx xxxx"),
    Row("DELETE", "/api/auth/tokens/{id}",                  "-xxxx xxxx"),
    Row("GET", "/api/auth/keys",                            "-xxxx xxxx"),
    Row("POST", "/api/auth/keys",                           "-xxxx xxxx"),
    Row("DELETE", "/api/auth/keys/{id}",                    "-xxxx xxxx"),
    Row("GET", "/api/auth/quota",                           "-xxxx xxxx"),
    Row("GET", "/api/auth/users",                           "---xx ----"),
    Row("PATCH", "/api/auth/users/{id}",                    "----x ----"),
    Row("DELETE", "/api/auth/users/{id}",                   "----x ----"),
    Row("POST", "/api/auth/users/{id}/reset",               "----x ----"),
    Row("GET", "/api/auth/users/{id}/quota",                "---xx ----"),
    Row("GET", "/api/auth/invitations",                     "----x ----"),
    Row("POST", "/api/auth/invitations",                    "---xx ----"),
    Row("DELETE", "/api/auth/invitations/{id}",             "----x ----"),
    Row("GET", "/api/auth/groups",                          "---xx ----"),
    Row("POST", "/api/auth/groups",                         "----x ----"),
    Row("PATCH", "/api/auth/groups/{id}",                   "----x ----"),
    Row("DELETE", "/api/auth/groups/{id}",                  "----x ----"),
    Row("PUT", "/api/auth/groups/{id}/members/{user}",      "----x ----"),
    Row("DELETE", "/api/auth/groups/{id}/members/{user}",   "----x ----"),
    Row("GET", "/api/audit",                                "----x ----"),
    Row("GET", "/api/audit/verify",                         "----x ----"),
    Row("GET", "/api/audit/export",                         "----x ----"),
    Row("GET", "/api/tasks/pending-approval",               "---xx ----"),
    Row("POST", "/api/approve/{task}",                      "---xx ----"),
    Row("POST", "/api/reject/{task}",                       "---xx ----"),
    // Instances.
    Row("POST", "/api/vps/create",                          "--xxx xxxx"),
    Row("GET", "/api/vps",                                  "-xxxx xxxx"),
    Row("GET", "/api/vps/status",                           "-xxxx xxxx"),
    Row("GET", "/api/vps/my",                               "-xxxx xxxx"),
    Row("GET", "/api/status/{task}",                        "-hhxx xxxx"),
    Row("GET", "/api/vps/{task}/events",                    "-hhxx xxxx"),
    Row("GET", "/api/vps/{task}/keys",                      "-hhxx xxxx"),
    Row("GET", "/api/vps/{task}/assignments",               "-hhxx xxxx"),
    Row("GET", "/api/vps/snapshots/{task}",                 "-hhxx xxxx"),
    Row("GET", "/api/vps/snapshots/{task}/latest",          "-hhxx xxxx"),
    Row("POST", "/api/vps/snapshots/{task}",                "-hhxx --xx"),
    Row("DELETE", "/api/vps/snapshots/{task}/{which}",      "-hhxx --xx"),
    Row("POST", "/api/vps/snapshots/{task}/{which}/restore","-hhxx --xx"),
    Row("DELETE", "/api/vps/snapshots/{task}",              "-hhxx --xx"),
    Row("POST", "/api/vps/pause/{task}",                    "-hhxx --xx"),
    Row("POST", "/api/vps/resume/{task}",                   "-hhxx --xx"),
    Row("POST", "/api/command/{task}/{command}",            "-hhxx --xx"),
    Row("PATCH", "/api/vps/{task}",                         "-hhxx --xx"),
    Row("POST", "/api/vps/restart/{task}",                  "-hhxx --xx"),
    Row("POST", "/api/vps/{task}/assign",                   "-hh-x ---x"),
    Row("DELETE", "/api/vps/{task}/assign/{user}",          "-hh-x ---x"),
    Row("PUT", "/api/vps/{task}/shares",                    "-hh-x ---x"),
    Row("DELETE", "/api/vps/{task}/shares",                 "-hh-x ---x"),
    Row("DELETE", "/api/vps/{task}/owner",                  "-hh-x ---x"),
    Row("GET", "/api/vps/shares",                           "-xxxx xxxx"),
    Row("POST", "/api/vps/shares/{task}/take",              "-xxxx xxxx"),
    Row("POST", "/api/vps/shares/{task}/decline",           "-xxxx xxxx"),
    Row("POST", "/api/vps/offers/{task}/take",              "--xxx xxxx"),
    Row("POST", "/api/vps/offers/{task}/decline",           "-xxxx xxxx"),
    // Access to the inside.
    Row("GET", "/api/vps/{task}/stream",                    "-hh-x -xxx"),
    Row("POST", "/api/vps/{task}/ssh-cert",                 "-hh-x -xxx"),
    Row("WS", "/ws/task/{task}/session",                    "-hh-x -xxx"),
    Row("WS", "/ws/task/{task}/terminal",                   "-hh-x -xxx"),
    Row("WS", "/ws/forward/{task}/{port}",                  "-hh-x -xxx"),
    Row("WS", "/ws/fs/{task}/watch",                        "-hh-x -xxx"),
    Row("GET", "/api/fs/{task}/list",                       "-hh-x -xxx"),
    Row("GET", "/api/fs/{task}/stat",                       "-hh-x -xxx"),
    Row("GET", "/api/fs/{task}/read",                       "-hh-x -xxx"),
    Row("GET", "/api/fs/{task}/raw",                        "-hh-x -xxx"),
    Row("POST", "/api/fs/{task}/mkdir",                     "-hh-x -xxx"),
    Row("POST", "/api/fs/{task}/rename",                    "-hh-x -xxx"),
    Row("DELETE", "/api/fs/{task}/delete",                  "-hh-x -xxx"),
    Row("POST", "/api/fs/{task}/write",                     "-hh-x -xxx"),
    Row("PUT", "/api/fs/{task}/raw",                        "-hh-x -xxx"),
    // Last, since they end the instance.
    Row("POST", "/api/vps/{task}/owner",                    "-hh-x ---x"),
    Row("POST", "/api/vps/stop/{task}",                     "-hhxx --xx"),
    Row("POST", "/api/vps/{task}/stop",                     "-hhxx --xx"),
    Row("POST", "/api/kill/{task}",                         "-hhxx --xx"),
    Row("DELETE", "/api/vps/{task}",                        "-hhxx ---x"),
];

/// All callers.
struct Cast {
    all: Vec<(&'static str, Option<Person>)>,
}

impl Cast {
    async fn join(host: &TestHost) -> Result<Self> {
        let mut all = vec![("nobody", None)];
        for (name, role) in [
            ("viewer", "viewer"),
            ("user", "user"),
            ("operator", "operator"),
            ("admin", "admin"),
            ("view", "user"),
            ("use", "user"),
            ("manage", "user"),
            ("owner", "user"),
        ] {
            all.push((name, Some(host.person(name, role).await?)));
        }
        Ok(Self { all })
    }

    fn get(&self, name: &str) -> &Person {
        self.all.iter().find(|(n, _)| *n == name).and_then(|(_, p)| p.as_ref()).unwrap()
    }
}

/// A VPS of the owner, shared at every level.
async fn instance(host: &TestHost, cast: &Cast, name: &str) -> Result<String> {
    let wish = json!({"name": name, "required_cores": 0, "ssh_key_mode": "none", "env_vars": {"SECRET": "s3cret"}});
    let asked = host.post_as(cast.get("owner"), "/api/vps/create", wish).await?;
    assert_eq!(asked.text("status"), "pending_approval", "{asked:?}");
    let id = asked.text("task_id").to_owned();
    let approved = host.post(&format!("/api/approve/{id}"), json!({})).await?;
    assert_eq!(approved.status, 200, "{approved:?}");
    host.wait_for(&id, "running").await?;
    for level in ["view", "use", "manage"] {
        let share = json!({"user": level, "level": level});
        let path = format!("/api/vps/{id}/shares");
        let shared = host.ask(Some(cast.get("owner")), "PUT", &path, Some(&share)).await?;
        assert_eq!(shared.status, 200, "{shared:?}");
    }
    Ok(id)
}

/// The category of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learned {
    May,
    MayNot,
    NothingThere,
}

/// A response about the request itself comes from behind the guard.
fn learned(status: u16, code: &str) -> Learned {
    match (status, code) {
        (401, "not_authenticated") | (403, "role" | "not_yours" | "no_policy") => Learned::MayNot,
        (404, "not_found") => Learned::NothingThere,
        _ => Learned::May,
    }
}

async fn call(host: &TestHost, who: Option<&Person>, row: &Row, id: &str) -> Result<Learned> {
    // No request here may succeed: the next caller finds everything unchanged.
    let path = row
        .1
        .replace("{task}", id)
        .replace("{name}", "n1")
        .replace("{hostname}", "n1")
        .replace("{which}", "77")
        .replace("{command}", "rewind")
        .replace("{port}", "80")
        .replace("{id}", "999999")
        .replace("{user}", "999999");
    if row.0 == "WS" || row.1.ends_with("/stream") {
        let (path, protocol) = match row.0 {
            "WS" => (path, "websocket"),
            _ => (format!("{path}?target=ping"), "kohakuriver-stream"),
        };
        let (status, code) = host.knock(who, &path, protocol).await?;
        return Ok(learned(status, &code));
    }
    let (path, body) = harmless(row, &path);
    let answer = host.ask(who, row.0, &path, body.as_ref()).await?;
    Ok(learned(answer.status, answer.text("code")))
}

/// Returns a request that passes the guard and authorization, and then changes nothing.
fn harmless(row: &Row, path: &str) -> (String, Option<Value>) {
    let (method, template) = (row.0, row.1);
    let body = match template {
        _ if method == "GET" => None,
        "/api/vps/{task}/assign" => Some(json!([999_999])),
        "/api/vps/{task}/shares" if method == "PUT" => Some(json!({"user": "x", "level": "own"})),
        "/api/vps/{task}/owner" => Some(json!({"user": "no-such-user"})),
        // An invalid number.
        "/api/vps/{task}" if method == "PATCH" => Some(json!({"required_cores": -1})),
        "/api/vps/create" => Some(json!({"required_cores": -1})),
        "/api/auth/invitations" => Some(json!({"role": "viewer"})),
        "/api/fs/{task}/write" => Some(json!({"path": "/tmp/x", "content": ""})),
        "/api/fs/{task}/mkdir" => Some(json!({"path": "/tmp/x"})),
        "/api/fs/{task}/rename" => Some(json!({"source": "/tmp/x", "destination": "/tmp/y"})),
        "/api/nodes/tokens" => Some(json!({"ttl_seconds": 0})),
        "/api/nodes/{name}/labels" => Some(json!({"labels": {"a": "b c"}})),
        _ => Some(json!({})),
    };
    let path = match template {
        "/api/nodes/{name}" if method == "DELETE" => path.replace("n1", "no-such-node"),
        "/api/vps/{task}/shares" if method == "DELETE" => format!("{path}?user=no-such-user"),
        // Answers are looked up among the caller's own shares and offers.
        t if t.starts_with("/api/vps/shares/") || t.starts_with("/api/vps/offers/") => {
            template.replace("{task}", "999999")
        }
        t if t.starts_with("/api/fs/") => format!("{path}?path=/etc/hostname"),
        _ => path.to_owned(),
    };
    (path, body)
}

#[tokio::test]
async fn every_path_and_socket_enforces_the_role_table() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let cast = Cast::join(&host).await?;
    let names: Vec<&str> =
        NOBODY_AND_ROLES.split_whitespace().filter(|name| *name != "|").collect();
    assert_eq!(names, cast.all.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for row in TABLE {
        let marks: Vec<char> = row.2.chars().filter(|c| *c != ' ').collect();
        for ((name, who), mark) in cast.all.iter().zip(marks) {
            // A caller that may end it gets a fresh one.
            let ends =
                row.1.contains("stop") || row.1.contains("kill") || row.1.contains("restart");
            let ends = ends || (row.0 == "DELETE" && row.1 == "/api/vps/{task}");
            let fresh = format!("vps-{}", names.iter().position(|n| n == name).unwrap());
            let id = match host.find(&fresh).await? {
                Some(id) if !ends || mark != 'x' => id,
                found => {
                    if let Some(id) = found {
                        let path = format!("/api/vps/{id}?force=true");
                        assert_eq!(host.delete(&path).await?.status, 202);
                        host.wait_gone(&id).await?;
                    }
                    instance(&host, &cast, &fresh).await?
                }
            };
            let expected = match mark {
                'x' => Learned::May,
                '-' => Learned::MayNot,
                'h' => Learned::NothingThere,
                other => panic!("'{other}' in the table"),
            };
            let got = call(&host, who.as_ref(), row, &id).await?;
            if got != expected {
                wrong.push(format!("{} {} by {name}: {got:?}, not {expected:?}", row.0, row.1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The same path, for an unconfined VPS.
#[tokio::test]
async fn unconfined_vps_is_created_for_operators_only() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let cast = Cast::join(&host).await?;
    for wish in [json!({"privileged": true}), json!({"additional_mounts": ["/data:/data"]})] {
        for ((name, who), mark) in cast.all.iter().zip("---xx----".chars()) {
            let answer = host.ask(who.as_ref(), "POST", "/api/vps/create", Some(&wish)).await?;
            let may = learned(answer.status, answer.text("code")) == Learned::May;
            assert_eq!(may, mark == 'x', "{wish} by {name}: {answer:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn role_table_covers_every_path() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let document = host.get("/openapi.json").await?.body;
    let mut known = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            known.insert((method.to_uppercase(), path.clone()));
        }
    }
    let tested: BTreeSet<_> =
        TABLE.iter().map(|row| (row.0.to_owned(), row.1.to_owned())).collect();
    let missing: Vec<_> = known.difference(&tested).collect();
    assert!(missing.is_empty(), "paths without a row: {missing:?}");
    // Paths outside the document: pages and sockets, which the policy lists too.
    let extra: Vec<_> = tested
        .difference(&known)
        .map(|(method, path)| (if method == "WS" { "GET" } else { method }, path.as_str()))
        .collect();
    let policy: BTreeSet<_> = kohakuriver_host::policy_rows().collect();
    let listed: BTreeSet<_> = tested
        .iter()
        .map(|(method, path)| (if method == "WS" { "GET" } else { method.as_str() }, path.as_str()))
        .collect();
    assert_eq!(policy, listed, "the policy's rows and this table's");
    assert!(extra.iter().all(|(_, path)| !path.starts_with("/api/")), "{extra:?}");
    Ok(())
}

#[tokio::test]
async fn cross_site_socket_is_refused_even_with_session() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let evil = "http://evil.example";
    let answer = host.get_with("/ws/task/1/terminal", "origin", evil).await?;
    assert_eq!((answer.status, answer.text("code")), (403, "foreign_origin"));
    let answer = host.get_with("/api/vps", "origin", evil).await?;
    assert_eq!((answer.status, answer.text("code")), (403, "foreign_origin"));
    Ok(())
}

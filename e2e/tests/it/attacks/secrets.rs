//! By those who read what is lying around: logs, files, process lists.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kohakuriver_e2e::{Guarded, Site};
use serde_json::json;

/// Does all that has a secret in it, and answers the secrets by what they are.
fn use_secrets(cluster: &Guarded) -> BTreeMap<&'static str, String> {
    let alice = cluster.person("alice", "user");
    let env = "env-value-hunter2".to_owned();
    let settings = json!({"env_vars": {"DB_PASSWORD": env}, "ssh_key_mode": "none"});
    let id = cluster.vps(&alice, "web", &settings);
    let typed = "typed-into-a-program";
    cluster.inside(&alice, &id, &format!("echo {typed} | cat")).ok();
    let written = "written-into-a-file".to_owned();
    let write = json!({"path": "/tmp/x", "content": written});
    cluster.post(Some(&alice), &format!("/api/fs/{id}/write"), &write).ok();
    let line = format!("REQUEST_TUNNEL {id} {}", alice.token);
    assert!(super::network::tunnel(cluster, &line).starts_with("SUCCESS"));
    let wrong = "a-password-typed-wrong".to_owned();
    let login = json!({"username": "alice", "password": wrong});
    assert_eq!(cluster.post(None, "/api/auth/login", &login).status, 401);
    let reset = format!("/api/auth/users/{}/reset", alice.id);
    let reset = cluster.post(Some(&cluster.root), &reset, &json!({})).ok().json();
    let reset = reset["token"].as_str().unwrap().to_owned();
    let newer = "a-newer-horse-battery".to_owned();
    let set = json!({"token": reset, "new_password": newer});
    let session = cluster.post(None, "/api/auth/password/reset", &set).ok();
    let session = session.headers("set-cookie")[0].split(['=', ';']).nth(1).unwrap().to_owned();
    let join = cluster.post(Some(&cluster.root), "/api/nodes/tokens", &json!({})).ok().json();
    let join = join["token"].as_str().unwrap().to_owned();
    let mut second = cluster.site.runner("n2", &["--join", &join]);
    second.wait_for_line("connected to the host");
    let joined = second.log();
    assert!(!joined.contains(&join), "the second node's own log");
    cluster.kr(&alice, &["vps", "restart", &id]).ok();
    cluster.kr(&alice, &["vps", "stop", &id]).ok();
    assert_eq!(cluster.delete(Some(&alice), &format!("/api/vps/{id}")).status, 202);
    BTreeMap::from([
        ("a password", cluster.root.password().to_owned()),
        ("a wrong password", wrong),
        ("a new password", newer),
        ("an API token", alice.token.clone()),
        ("the admin's token", cluster.root.token.clone()),
        ("a session", session),
        ("an older session", alice.cookie.split('=').nth(1).unwrap().to_owned()),
        ("a password reset", reset),
        ("a join token", join),
        ("an environment's value", env),
        ("a program's words", typed.to_owned()),
        ("a file's content", written),
    ])
}

#[test]
fn s26_no_secret_is_in_the_logs_at_any_level() {
    for filter in ["info", "debug", "trace"] {
        let cluster = Guarded::start_on(Site::new().with_log(filter));
        let secrets = use_secrets(&cluster);
        for (server, log) in [("host", cluster.host.log()), ("runner", cluster.runner.log())] {
            assert!(log.lines().count() > 3, "the {server} says something");
            for (what, secret) in &secrets {
                let line = log.lines().find(|line| line.contains(secret));
                assert!(line.is_none(), "{what} is in the {server}'s log at {filter}: {line:?}");
            }
        }
    }
}

#[test]
fn s26_what_is_kept_is_for_its_owner_alone_and_what_opens_doors_is_kept_hashed() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let settings = json!({"env_vars": {"DB_PASSWORD": "hunter2"}, "ssh_key_mode": "none"});
    cluster.vps(&alice, "web", &settings);
    for directory in ["host", "n1/runner"] {
        let directory = cluster.site.data_dir().join(directory);
        let mut open = Vec::new();
        look(&directory, &mut open);
        assert!(open.is_empty(), "others can read: {open:#?}");
    }
    for secret in [
        "host/ca.pem",
        "host/ssh_host_ed25519_key",
        "host/ssh_user_ca_ed25519_key",
        "host/host.db",
        "n1/runner/identity.json",
    ] {
        let mode = fs::metadata(cluster.site.data_dir().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    // A copy of the database opens no door.
    let secrets = [
        cluster.root.password(),
        &alice.token,
        &cluster.root.token,
        alice.cookie.split('=').nth(1).unwrap(),
    ];
    for entry in fs::read_dir(cluster.site.data_dir().join("host")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap_or_default();
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a secret is in {}", path.display());
        }
    }
    // Everybody on the node sees the words of everybody's processes.
    for pid in [cluster.host.pid(), cluster.runner.pid()] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let all = String::from_utf8_lossy(&[environment, words].concat()).into_owned();
        assert!(!all.contains(&cluster.root.token) && !all.contains("hunter2"));
    }
}

/// What somebody else than its owner could open: a closed directory closes all that is in it.
fn look(place: &Path, open: &mut Vec<String>) {
    let metadata = fs::symlink_metadata(place).unwrap();
    let mode = metadata.permissions().mode();
    if mode & 0o077 == 0 || metadata.is_symlink() {
        return;
    }
    if !metadata.is_dir() {
        open.push(format!("{:o} {}", mode & 0o777, place.display()));
        return;
    }
    for entry in fs::read_dir(place).unwrap() {
        look(&entry.unwrap().path(), open);
    }
}

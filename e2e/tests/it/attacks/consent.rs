//! By accounts that want into another's names, quota or VPS without the other's act.

use std::fs;
use std::process::Command;

use kohakuriver_e2e::{Guarded, run};
use serde_json::json;

/// Mallory shares a VPS of the name that bob's has, and one of the name of a site on the Internet.
#[test]
fn shared_names_never_take_connections_meant_for_others() {
    let cluster = Guarded::start();
    let bob = cluster.person("bob", "user");
    // An account's name is chosen by its holder.
    let com = cluster.person("com", "user");
    let ssh = json!({"ssh_key_mode": "none", "required_cores": 0});
    let own = cluster.vps(&bob, "web", &ssh);
    let squatter = cluster.vps(&com, "web", &ssh);
    let site = cluster.vps(&com, "github", &ssh);
    for id in [&squatter, &site] {
        cluster.share(&com, id, &bob, "use");
    }
    let file = cluster.site.path().join("bob.conf");
    let alias_of = |host: &str| {
        let path = file.to_str().unwrap();
        cluster.kr(&bob, &["ssh", "config", "--output", path]).ok();
        let text = fs::read_to_string(&file).unwrap();
        // Asked without running what a certificate would be asked for with.
        let plain: String = text
            .lines()
            .filter(|line| !line.starts_with("Match"))
            .fold(String::new(), |text, line| text + line + "\n");
        fs::write(&file, plain).unwrap();
        let settings = run(Command::new("ssh").args(["-G", "-F", path, host])).ok();
        let line = settings.lines().find(|line| line.starts_with("hostkeyalias "));
        line.map(|line| line.trim_start_matches("hostkeyalias kohakuriver-vps-").to_owned())
    };
    let mine = Some(own.clone());
    assert_eq!((alias_of("web"), alias_of("web.com"), alias_of("github.com")), (mine, None, None));
    for id in [&squatter, &site] {
        let take = format!("/api/vps/shares/{id}/take");
        cluster.post(Some(&bob), &take, &json!({})).ok();
    }
    assert_eq!(alias_of("web"), Some(own.clone()), "also after it was taken");
    assert_eq!(alias_of("github.com"), None, "a site's name is never a VPS's");
    assert_eq!(cluster.kr(&bob, &["ssh", "web", "--", "hostname"]).code, 0);
    let seen = cluster.get(Some(&bob), "/api/status/web").ok().json();
    assert_eq!(seen["task_id"], json!(own));
    cluster.kr(&bob, &["vps", "shares", "take", "github.com", "--as", "theirs"]).ok();
    assert_eq!(alias_of("theirs"), Some(site));
}

/// Operators stop and delete, and grant themselves no access.
#[test]
fn operators_let_themselves_into_nothing() {
    let cluster = Guarded::start();
    let (bob, olga) = (cluster.person("bob", "user"), cluster.person("olga", "operator"));
    let id = cluster.vps(&bob, "secret", &json!({"ssh_key_mode": "none"}));
    for arguments in [
        &["terminal", "exec", &id, "--", "id"][..],
        &["vps", "share", &id, "--with", "olga", "--level", "manage"],
        &["vps", "assign", &id, "olga"],
        &["vps", "give", &id, "olga", "--yes"],
    ] {
        cluster.kr(&olga, arguments).fails(1, &["but not"]);
    }
    let key = cluster.site.make_key("olga");
    let public = key.with_extension("pub");
    let add = ["vps", "keys", "add", &id, "--public-key-file", public.to_str().unwrap()];
    cluster.kr(&olga, &add).fails(1, &["but not"]);
    cluster.kr(&olga, &["terminal", "exec", &id, "--", "id"]).fails(1, &["but not"]);
    cluster.kr(&olga, &["vps", "stop", &id]).ok();
    cluster.kr(&olga, &["vps", "delete", &id, "--yes"]).ok();
}

/// An unrequested offer fills no quota and reveals no names.
#[test]
fn offers_fill_no_quota_of_the_receiver() {
    let cluster = Guarded::start();
    let (bob, mallory) = (cluster.person("bob", "user"), cluster.person("mallory", "user"));
    let quota = json!({"quota": {"instances": 1, "cores": 1}});
    let path = format!("/api/auth/users/{}", bob.id);
    cluster.ask(Some(&cluster.root), "PATCH", &path, &quota).ok();
    let own = cluster.vps(&bob, "web", &json!({"required_cores": 1}));
    let gift = cluster.vps(&mallory, "web", &json!({"required_cores": 1}));
    let give = format!("/api/vps/{gift}/owner");
    cluster.post(Some(&mallory), &give, &json!({"user": "bob"})).ok();
    let held = cluster.get(Some(&bob), "/api/auth/quota").ok().json();
    assert_eq!((&held["held"]["instances"], &held["held"]["cores"]), (&json!(1), &json!(1)));
    cluster.kr(&bob, &["vps", "restart", &own]).ok();
    cluster
        .kr(&bob, &["vps", "offers", "take", &gift])
        .fails(1, &["already have a VPS named 'web'"]);
    cluster.kr(&bob, &["vps", "offers", "decline", &gift]).ok();
    let still = cluster.get(Some(&mallory), &format!("/api/status/{gift}")).ok().json();
    assert_eq!(still["access"], "owner");
}

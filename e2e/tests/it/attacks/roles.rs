//! By people who have an account, and want what is not theirs.

use kohakuriver_e2e::{Guarded, Person};
use serde_json::{Value, json};

use super::network::doors;

fn knock(cluster: &Guarded, who: &Person, path: &str, protocol: &str) -> u16 {
    cluster.knock(&[("Authorization", &format!("Bearer {}", who.token))], path, protocol)
}

#[test]
fn s4_s5_s14_other_peoples_vps_does_not_exist_for_those_who_have_no_share() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let secret = "hunter2-in-the-environment";
    let id = cluster.vps(
        &alice,
        "web",
        &json!({"env_vars": {"DB_PASSWORD": secret}, "ssh_key_mode": "none"}),
    );
    let (mallory, viewer) = (cluster.person("mallory", "user"), cluster.person("viewer", "viewer"));
    for who in [&mallory, &viewer] {
        for (path, protocol) in doors(&id) {
            let status = knock(&cluster, who, &path, protocol);
            assert_eq!(status, 404, "{path} by {}", who.name);
        }
        for (method, path) in [
            ("GET", "/api/status/{id}"),
            ("GET", "/api/fs/{id}/read?path=/etc/passwd"),
            ("DELETE", "/api/fs/{id}/delete?path=/etc/passwd"),
            ("GET", "/api/vps/{id}/events"),
            ("GET", "/api/vps/{id}/keys"),
            ("GET", "/api/vps/{id}/assignments"),
            ("GET", "/api/vps/snapshots/{id}"),
            ("POST", "/api/vps/snapshots/{id}"),
            ("DELETE", "/api/vps/snapshots/{id}"),
            ("POST", "/api/vps/stop/{id}"),
            ("POST", "/api/kill/{id}"),
            ("DELETE", "/api/vps/{id}"),
        ] {
            let body = if method == "POST" { json!({}) } else { Value::Null };
            let there = cluster.ask(Some(who), method, &path.replace("{id}", &id), &body);
            let not =
                cluster.ask(Some(who), method, &path.replace("{id}", "1234567890123456"), &body);
            assert_eq!(there.status, 404, "{method} {path} by {}: {}", who.name, there.text());
            assert_eq!(
                there.text().replace(&id, "ID"),
                not.text().replace("1234567890123456", "ID")
            );
        }
        for list in ["/api/vps", "/api/vps/status", "/api/vps/my"] {
            let text = cluster.get(Some(who), list).ok().text();
            assert!(!text.contains(&id) && !text.contains(secret), "{list}: {text}");
        }
    }
    // Operators run the cluster, and are not inside; what may be a password is not shown.
    let operator = cluster.person("operator", "operator");
    let seen = cluster.get(Some(&operator), &format!("/api/status/{id}")).ok().text();
    assert!(!seen.contains(secret), "{seen}");
    for (path, protocol) in doors(&id) {
        assert_eq!(knock(&cluster, &operator, &path, protocol), 403, "{path}");
    }
    for level in ["view", "use"] {
        cluster.share(&alice, &id, &mallory, level);
        let seen = cluster.get(Some(&mallory), &format!("/api/status/{id}")).ok().text();
        assert!(!seen.contains(secret), "{level}: {seen}");
    }
    assert!(cluster.get(Some(&alice), &format!("/api/status/{id}")).ok().text().contains(secret));
    // A clone of somebody's snapshot would be a copy of the disk.
    let clone = json!({"from_vps": id, "name": "copy"});
    let answer = cluster.post(Some(&mallory), "/api/vps/create?wait=false", &clone);
    assert!([403, 404].contains(&answer.status), "{}", answer.text());
}

#[test]
fn s9_what_a_deleted_account_had_is_nobodys() {
    let cluster = Guarded::start();
    let carol = cluster.person("carol", "user");
    assert_eq!(cluster.get(Some(&carol), "/api/auth/me").ok().json()["username"], "carol");
    cluster.delete(Some(&cluster.root), &format!("/api/auth/users/{}", carol.id)).ok();
    let dave = cluster.person("dave", "admin");
    assert!(dave.id > carol.id, "numbers are not given out again");
    // The same name is another account.
    let again = cluster.person("carol", "operator");
    assert!(again.id > dave.id);
    assert_eq!(cluster.get(Some(&carol), "/api/nodes").status, 401);
    let headers = [("Cookie", carol.cookie.as_str())];
    assert_eq!(cluster.send("GET", "/api/nodes", &headers, b"").status, 401);
    let me = cluster.send("GET", "/api/auth/me", &headers, b"").ok().json();
    assert_eq!(me["username"], "_anonymous");
}

#[test]
fn s13_s16_a_role_is_not_made_bigger_by_asking() {
    let cluster = Guarded::start();
    let (alice, operator) = (cluster.person("alice", "user"), cluster.person("olga", "operator"));
    let me = format!("/api/auth/users/{}", alice.id);
    let refused = |who: &Person, method: &str, path: &str, body: Value| {
        let answer = cluster.ask(Some(who), method, path, &body);
        assert_eq!(answer.status, 403, "{method} {path} by {}: {}", who.name, answer.text());
    };
    refused(&alice, "PATCH", &me, json!({"role": "admin"}));
    refused(&alice, "POST", "/api/auth/tokens/create", json!({"name": "x", "role": "operator"}));
    refused(&alice, "POST", "/api/auth/invitations", json!({"role": "admin"}));
    refused(&alice, "POST", "/api/nodes/tokens", json!({}));
    refused(&alice, "POST", &format!("/api/auth/users/{}/reset", cluster.root.id), json!({}));
    refused(
        &operator,
        "PATCH",
        &format!("/api/auth/users/{}", operator.id),
        json!({"role": "admin"}),
    );
    refused(&operator, "POST", "/api/auth/invitations", json!({"role": "user"}));
    refused(&operator, "POST", &format!("/api/auth/users/{}/reset", cluster.root.id), json!({}));
    refused(&operator, "POST", "/api/nodes/tokens", json!({}));
    // Nobody approves what they themselves ask for.
    let wish = json!({"name": "mine", "registry_image": "kohakuriver-test/busybox"});
    let made = cluster.post(Some(&alice), "/api/vps/create?wait=false", &wish).ok();
    let made = made.json();
    let id = made["task_id"].as_str().unwrap();
    assert_eq!(made["status"], "pending_approval");
    refused(&alice, "POST", &format!("/api/approve/{id}"), json!({}));
    for (path, protocol) in doors(id).iter().filter(|door| door.1 == "kohakuriver-stream") {
        assert_ne!(knock(&cluster, &alice, path, protocol), 101, "{path}");
    }
    // Rights over the node are not among what a user can ask for, nor what anybody gets of a node
    // whose owner has not said so.
    for rights in [json!({"privileged": true}), json!({"additional_mounts": ["/etc:/host"]})] {
        let mut greedy = json!({"registry_image": "kohakuriver-test/busybox", "name": "greedy"});
        for (key, value) in rights.as_object().unwrap() {
            greedy[key] = value.clone();
        }
        let answer = cluster.post(Some(&alice), "/api/vps/create", &greedy);
        assert_eq!((answer.status, &answer.json()["code"]), (403, &json!("role")), "{greedy}");
        let answer = cluster.post(Some(&cluster.root), "/api/vps/create", &greedy);
        assert!(answer.status == 503 && answer.text().contains("lets no VPS"), "{greedy}");
    }
    let waiting = cluster.get(Some(&cluster.root), "/api/tasks/pending-approval").ok().text();
    assert!(!waiting.contains("greedy"), "{waiting}");
}

#[test]
fn s16_a_token_is_never_more_than_it_was_made_for() {
    let cluster = Guarded::start();
    let admin = cluster.person("ada", "admin");
    let id = cluster.vps(&admin, "web", &json!({"ssh_key_mode": "none"}));
    let wish = json!({"name": "monitoring", "role": "viewer", "expires_hours": 1});
    let made = cluster.post(Some(&admin), "/api/auth/tokens/create", &wish).ok().json();
    let token = made["token"].as_str().unwrap().to_owned();
    let stolen = Person { token, ..admin };
    assert_eq!(cluster.get(Some(&stolen), "/api/auth/me").ok().json()["role"], "viewer");
    assert_eq!(cluster.post(Some(&stolen), "/api/vps/create", &json!({})).status, 403);
    for (path, protocol) in doors(&id) {
        assert_eq!(knock(&cluster, &stolen, &path, protocol), 403, "{path}");
    }
    // What it makes ends with it, and is no more than it is.
    let wish = json!({"name": "child", "role": "admin"});
    assert_eq!(cluster.post(Some(&stolen), "/api/auth/tokens/create", &wish).status, 403);
    let child =
        cluster.post(Some(&stolen), "/api/auth/tokens/create", &json!({"name": "child"})).ok();
    assert_eq!(child.json()["expires_at"], made["expires_at"]);
    assert_eq!(child.json()["role"], "viewer");
    // A key would be the whole account's, for ever.
    let key = cluster.site.make_key("stolen");
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let answer = cluster.post(Some(&stolen), "/api/auth/keys", &json!({"key": public}));
    assert_eq!(answer.status, 403, "{}", answer.text());
    // Nor does it change a password that it does not know.
    let change = json!({"old_password": "guess one two", "new_password": "mine now and ever"});
    assert_eq!(cluster.post(Some(&stolen), "/api/auth/password", &change).status, 401);
}

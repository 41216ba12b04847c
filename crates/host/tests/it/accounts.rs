//! Log-in, tokens, keys, accounts, and their ends.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_testkit::{PASSWORD, Person, TestHost};
use serde_json::json;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPqYzXX0rqCnGQ0hTVVDLqUiAL2P6bcNfHBXk1vKMYKp a@b";

async fn start() -> Result<TestHost> {
    TestHost::start_with(|config| config.auth.enabled = true).await
}

#[tokio::test]
async fn invitation_creates_one_account_of_its_role() -> Result<()> {
    let host = start().await?;
    let invited = host.post("/api/auth/invitations", json!({"role": "operator"})).await?;
    let path = format!("/api/auth/register?token={}", invited.text("token"));
    let body = json!({"username": "olga", "password": PASSWORD});
    let made = host.ask(None, "POST", &path, Some(&body)).await?;
    assert_eq!((made.status, &made.body["user"]["role"]), (200, &json!("operator")));
    let again = json!({"username": "oskar", "password": PASSWORD});
    let refused = host.ask(None, "POST", &path, Some(&again)).await?;
    assert_eq!((refused.status, refused.text("code")), (400, "invitation"));
    let listed = host.get("/api/auth/invitations").await?.body;
    let shown = listed[0]["token"].as_str().unwrap();
    assert!(shown.len() == 8 && invited.text("token").starts_with(shown), "only its beginning");
    let wrong = host.ask(None, "POST", "/api/auth/register?token=feed", Some(&again)).await?;
    assert_eq!(wrong.status, 400);
    Ok(())
}

#[tokio::test]
async fn invitation_survives_registration_of_taken_name() -> Result<()> {
    let host = start().await?;
    let invited = host.post("/api/auth/invitations", json!({})).await?;
    let path = format!("/api/auth/register?token={}", invited.text("token"));
    let taken = json!({"username": "ROOT", "password": PASSWORD});
    let refused = host.ask(None, "POST", &path, Some(&taken)).await?;
    assert_eq!((refused.status, refused.text("code")), (409, "name_taken"));
    let short = json!({"username": "alice", "password": "short"});
    assert_eq!(host.ask(None, "POST", &path, Some(&short)).await?.status, 422);
    let good = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(host.ask(None, "POST", &path, Some(&good)).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn failed_logins_are_indistinguishable_and_throttled() -> Result<()> {
    let host = start().await?;
    host.person("alice", "user").await?;
    let body = |name: &str, password: &str| json!({"username": name, "password": password});
    let wrong = host.ask(None, "POST", "/api/auth/login", Some(&body("alice", "nonsense"))).await?;
    let unknown = host.ask(None, "POST", "/api/auth/login", Some(&body("bob", "nonsense"))).await?;
    assert_eq!((wrong.status, &wrong.body), (401, &unknown.body));
    let mut slowed = false;
    for _ in 0..15 {
        let login = body("alice", "nonsense");
        let answer = host.ask(None, "POST", "/api/auth/login", Some(&login)).await?;
        slowed |= answer.status == 429;
    }
    assert!(slowed);
    let right = body("alice", PASSWORD);
    assert_eq!(host.ask(None, "POST", "/api/auth/login", Some(&right)).await?.status, 429);
    host.advance(Duration::from_secs(70));
    assert_eq!(host.ask(None, "POST", "/api/auth/login", Some(&right)).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn token_is_limited_by_owner_role_and_expiry() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let too_much = json!({"name": "x", "role": "admin"});
    assert_eq!(host.post_as(&alice, "/api/auth/tokens/create", too_much).await?.status, 403);
    let wish = json!({"name": "looking", "role": "viewer", "expires_hours": 1});
    let made = host.post_as(&alice, "/api/auth/tokens/create", wish).await?;
    let mut viewer = alice.clone();
    viewer.token = made.text("token").to_owned();
    assert_eq!(host.get_as(&viewer, "/api/auth/me").await?.text("role"), "viewer");
    let refused = host.post_as(&viewer, "/api/vps/create", json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "role"));
    // A credential created with it ends with it.
    let child = host.post_as(&viewer, "/api/auth/tokens/create", json!({"name": "child"})).await?;
    assert_eq!(child.text("expires_at"), made.text("expires_at"));
    host.advance(Duration::from_secs(3601));
    assert_eq!(host.get_as(&viewer, "/api/nodes").await?.status, 401);
    let tokens = host.get_as(&alice, "/api/auth/tokens").await?.body;
    assert!(tokens[1]["last_used"].is_string() && tokens[0]["token"].is_null(), "{tokens}");
    Ok(())
}

#[tokio::test]
async fn revoked_or_disabled_credentials_fail_at_once() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let token = host.post_as(&alice, "/api/auth/tokens/create", json!({"name": "b"})).await?;
    let mut other = alice.clone();
    other.token = token.text("token").to_owned();
    assert_eq!(host.get_as(&other, "/api/nodes").await?.status, 200);
    let path = format!("/api/auth/tokens/{}", token.body["id"]);
    assert_eq!(host.ask(Some(&alice), "DELETE", &path, None).await?.status, 200);
    assert_eq!(host.get_as(&other, "/api/nodes").await?.status, 401);
    let user = format!("/api/auth/users/{}", alice.id);
    assert_eq!(host.patch(&user, json!({"role": "viewer"})).await?.status, 200);
    assert_eq!(host.post_as(&alice, "/api/vps/create", json!({})).await?.status, 403);
    assert_eq!(host.patch(&user, json!({"is_active": false})).await?.status, 200);
    assert_eq!(host.get_as(&alice, "/api/nodes").await?.status, 401);
    let login = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(host.ask(None, "POST", "/api/auth/login", Some(&login)).await?.status, 403);
    assert_eq!(host.delete(&user).await?.status, 200);
    let bob = host.person("bob", "user").await?;
    assert!(bob.id > alice.id, "numbers are not given out again");
    assert_eq!(host.get_as(&alice, "/api/nodes").await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn last_admin_cannot_be_demoted() -> Result<()> {
    let host = start().await?;
    let second = host.person("second", "admin").await?;
    let path = format!("/api/auth/users/{}", second.id);
    let me = host.get("/api/auth/me").await?.body["id"].clone();
    let root = format!("/api/auth/users/{me}");
    for change in [json!({"role": "user"}), json!({"is_active": false})] {
        assert_eq!(host.patch(&root, change.clone()).await?.status, 400, "not oneself");
    }
    assert_eq!(host.delete(&root).await?.status, 400);
    assert_eq!(host.patch(&path, json!({"role": "user"})).await?.status, 200);
    let refused = host.ask(Some(&second), "DELETE", &root, None).await?;
    assert_eq!(refused.status, 403, "who is a user now deletes nobody");
    Ok(())
}

#[tokio::test]
async fn new_password_ends_sessions_and_reset_works_once() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let path = format!("/api/auth/users/{}/reset", alice.id);
    let reset = host.post(&path, json!({})).await?;
    let body = json!({"token": reset.text("token"), "new_password": "another horse"});
    let short = json!({"token": reset.text("token"), "new_password": "short"});
    let set = "/api/auth/password/reset";
    assert_eq!(host.ask(None, "POST", set, Some(&short)).await?.status, 422);
    assert_eq!(host.ask(None, "POST", set, Some(&body)).await?.status, 200);
    assert_eq!(host.ask(None, "POST", set, Some(&body)).await?.status, 400);
    let old = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(host.ask(None, "POST", "/api/auth/login", Some(&old)).await?.status, 401);
    let change = json!({"old_password": "another horse", "new_password": "third horse"});
    assert_eq!(host.post_as(&alice, "/api/auth/password", change).await?.status, 200);
    let wrong = json!({"old_password": "another horse", "new_password": "fourth horse"});
    assert_eq!(host.post_as(&alice, "/api/auth/password", wrong).await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn new_password_ends_tokens_and_keys_on_request() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let added = host.post_as(&alice, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!(added.status, 200, "{added:?}");
    let change = json!({"old_password": PASSWORD, "new_password": "second horse"});
    assert_eq!(host.post_as(&alice, "/api/auth/password", change).await?.status, 200);
    assert_eq!(host.get_as(&alice, "/api/auth/keys").await?.body[0]["id"], added.body["id"]);
    let path = format!("/api/auth/users/{}/reset", alice.id);
    let reset = host.post(&path, json!({})).await?;
    let change =
        json!({"old_password": "second horse", "new_password": "third horse", "end_tokens": true});
    assert_eq!(host.post_as(&alice, "/api/auth/password", change).await?.status, 200);
    assert_eq!(host.get_as(&alice, "/api/nodes").await?.status, 401);
    // The key is free, so another account can register it; and the link created before is void.
    let bob = host.person("bob", "user").await?;
    assert_eq!(host.post_as(&bob, "/api/auth/keys", json!({"key": KEY})).await?.status, 200);
    let body = json!({"token": reset.text("token"), "new_password": "fourth horse"});
    let spent = host.ask(None, "POST", "/api/auth/password/reset", Some(&body)).await?;
    assert_eq!(spent.status, 400);
    // A reset does the same.
    let path = format!("/api/auth/users/{}/reset", bob.id);
    let reset = host.post(&path, json!({})).await?;
    let body =
        json!({"token": reset.text("token"), "new_password": "bobs horse", "end_tokens": true});
    let set = host.ask(None, "POST", "/api/auth/password/reset", Some(&body)).await?;
    assert_eq!(set.status, 200);
    assert_eq!(host.get_as(&bob, "/api/nodes").await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn expiring_token_cannot_register_a_key() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let wish = json!({"name": "laptop", "expires_hours": 1});
    let made = host.post_as(&alice, "/api/auth/tokens/create", wish).await?;
    let laptop = Person { token: made.text("token").to_owned(), ..alice.clone() };
    let refused = host.post_as(&laptop, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "log_in_again"));
    // Nor with a token created with it.
    let child = host.post_as(&laptop, "/api/auth/tokens/create", json!({"name": "child"})).await?;
    let child = Person { token: child.text("token").to_owned(), ..alice.clone() };
    let refused = host.post_as(&child, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "log_in_again"));
    assert_eq!(host.get_as(&alice, "/api/auth/keys").await?.body, json!([]));
    // Removing a key needs no more than before.
    let added = host.post_as(&alice, "/api/auth/keys", json!({"key": KEY})).await?;
    let path = format!("/api/auth/keys/{}", added.body["id"]);
    assert_eq!(host.ask(Some(&laptop), "DELETE", &path, None).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn ssh_key_belongs_to_one_account() -> Result<()> {
    let host = start().await?;
    let (alice, bob) = (host.person("alice", "user").await?, host.person("bob", "user").await?);
    let added = host.post_as(&alice, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!((added.status, added.text("comment")), (200, "a@b"), "{added:?}");
    let taken = host.post_as(&bob, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!((taken.status, taken.text("code")), (409, "key_taken"));
    let path = format!("/api/auth/keys/{}", added.body["id"]);
    assert_eq!(host.ask(Some(&bob), "DELETE", &path, None).await?.status, 404);
    assert_eq!(host.ask(Some(&alice), "DELETE", &path, None).await?.status, 200);
    assert_eq!(host.post_as(&bob, "/api/auth/keys", json!({"key": "nonsense"})).await?.status, 422);
    Ok(())
}

#[tokio::test]
async fn token_of_lower_role_cannot_register_a_key() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let wish = json!({"name": "looking", "role": "viewer"});
    let mut viewer = alice.clone();
    viewer.token =
        host.post_as(&alice, "/api/auth/tokens/create", wish).await?.text("token").to_owned();
    let refused = host.post_as(&viewer, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "role"));
    Ok(())
}

#[tokio::test]
async fn anonymous_caller_learns_little_and_cannot_fill_log() -> Result<()> {
    let host = start().await?;
    let health = host.ask(None, "GET", "/api/health", None).await?;
    assert_eq!((health.text("status"), &health.body["nodes"]), ("ok", &json!([])));
    let before = host.get("/api/audit/verify").await?.body["entries"].as_u64().unwrap();
    for _ in 0..100 {
        let _ = host.ask(None, "POST", "/api/auth/logout", None).await?;
        let _ = host.ask(None, "POST", "/api/vps/create", Some(&json!({}))).await?;
    }
    let after = host.get("/api/audit/verify").await?.body["entries"].as_u64().unwrap();
    assert!(after - before < 40, "{before} {after}");
    Ok(())
}

#[tokio::test]
async fn concurrent_logins_are_each_audited_once_in_chain() -> Result<()> {
    let host = start().await?;
    for name in ["alice", "bob", "carol"] {
        host.person(name, "user").await?;
    }
    let log_in = async |name: &str| {
        let body = json!({"username": name, "password": PASSWORD});
        host.ask(None, "POST", "/api/auth/login", Some(&body)).await
    };
    // Interleaved writes of the other kind, which wait for the disk.
    let token =
        async |name: &str| host.post("/api/auth/tokens/create", json!({"name": name})).await;
    let (a, b, c, d, e, f, g) = tokio::try_join!(
        log_in("alice"),
        token("one"),
        log_in("bob"),
        token("two"),
        log_in("carol"),
        token("three"),
        log_in("alice"),
    )?;
    assert!([a, b, c, d, e, f, g].iter().all(|answer| answer.status == 200));
    let log = host.get("/api/audit?action=auth.login&limit=1000").await?.body;
    let mut objects: Vec<_> = log.as_array().unwrap().iter().map(|e| e["object"].clone()).collect();
    objects.sort_by_key(ToString::to_string);
    assert_eq!(json!(objects), json!(["user alice", "user alice", "user bob", "user carol"]));
    let host = host.restart().await?;
    assert_eq!(host.get("/api/audit/verify").await?.body["intact"], true);
    Ok(())
}

#[tokio::test]
async fn account_paths_are_disabled_without_login() -> Result<()> {
    let host = TestHost::start().await?;
    assert_eq!(host.get("/api/auth/status").await?.body["auth_enabled"], false);
    assert_eq!(host.get("/api/auth/me").await?.status, 503);
    assert_eq!(host.get("/api/auth/tokens").await?.status, 503);
    let login = json!({"username": "a", "password": PASSWORD});
    assert_eq!(host.post("/api/auth/login", login).await?.status, 503);
    assert_eq!(host.get("/api/vps").await?.status, 200);
    assert_eq!(host.get("/api/audit").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn audit_log_has_actors_no_secrets_and_detects_changes() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let wrong = json!({"username": "alice", "password": "hunter22"});
    assert_eq!(host.ask(None, "POST", "/api/auth/login", Some(&wrong)).await?.status, 401);
    assert_eq!(host.post_as(&alice, "/api/nodes/tokens", json!({})).await?.status, 403);
    let log = host.get("/api/audit?limit=1000").await?.body;
    let entries = log.as_array().unwrap();
    let has = |actor: &str, action: &str, object: &str, result: &str| {
        entries.iter().any(|e| {
            e["actor"] == actor
                && e["action"] == action
                && e["object"] == object
                && e["result"] == result
                && e["address"] == "127.0.0.1"
        })
    };
    assert!(has("anonymous", "auth.login", "user alice", "wrong_password"), "{log}");
    assert!(has("alice", "node.token", "", "role"), "{log}");
    assert!(has("anonymous", "auth.register", "user alice", "ok"), "{log}");
    let text = log.to_string();
    assert!(!text.contains("hunter22") && !text.contains(&alice.token) && !text.contains(PASSWORD));
    // A client that follows the log does not record its own queries.
    let first = host.get("/api/audit?after=2&limit=2").await?.body;
    assert_eq!((&first[0]["seq"], &first[1]["seq"]), (&json!(3), &json!(4)));
    let newest = host.get("/api/audit?after=0&limit=1000").await?.body;
    let again = host.get("/api/audit?after=0&limit=1000").await?.body;
    assert_eq!(newest, again);
    let intact = host.get("/api/audit/verify").await?.body;
    assert_eq!(intact["intact"], true);
    let exported = host.get("/api/audit/export").await?.body;
    assert!(exported.as_str().unwrap_or_default().lines().count() >= entries.len());
    host.break_audit(3).await?;
    let broken = host.get("/api/audit/verify").await?.body;
    assert_eq!((&broken["intact"], &broken["broken_at"]), (&json!(false), &json!(3)));
    Ok(())
}

#[tokio::test]
async fn data_directory_is_visible_to_admins_only() -> Result<()> {
    let host = start().await?;
    let olga = host.person("olga", "operator").await?;
    let told = host.get("/api/health").await?;
    assert_eq!(told.text("data_dir"), host.data_dir().display().to_string());
    assert!(host.get_as(&olga, "/api/health").await?.body["data_dir"].is_null());
    assert!(host.ask(None, "GET", "/api/health", None).await?.body["data_dir"].is_null());
    Ok(())
}

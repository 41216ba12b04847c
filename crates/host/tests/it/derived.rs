//! Derived credentials never outlive or exceed their origin.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_testkit::{PASSWORD, Person, TestHost};
use serde_json::{Value, json};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPqYzXX0rqCnGQ0hTVVDLqUiAL2P6bcNfHBXk1vKMYKp a@b";

async fn start() -> Result<TestHost> {
    TestHost::start_with(|config| config.auth.enabled = true).await
}

/// A token made with the caller's own token.
async fn derived(host: &TestHost, by: &Person) -> Result<(Person, i64)> {
    let made = host.post_as(by, "/api/auth/tokens/create", json!({"name": "derived"})).await?;
    anyhow::ensure!(made.status == 200 && made.body["ends_with_caller"] == true, "{made:?}");
    let id = made.body["id"].as_i64().unwrap_or_default();
    Ok((Person { token: made.text("token").to_owned(), ..by.clone() }, id))
}

#[tokio::test]
async fn revoked_token_revokes_credentials_derived_from_it() -> Result<()> {
    let host = start().await?;
    let alice = host.person("alice", "user").await?;
    let (child, id) = derived(&host, &alice).await?;
    let (grandchild, inner) = derived(&host, &child).await?;
    let added = host.post_as(&child, "/api/auth/keys", json!({"key": KEY})).await?;
    assert_eq!(added.status, 200, "{added:?}");
    let tokens = host.get_as(&alice, "/api/auth/tokens").await?.body;
    assert_eq!((&tokens[0]["id"], &tokens[0]["made_with"]), (&json!(inner), &json!(id)));
    assert_eq!(host.get_as(&grandchild, "/api/nodes").await?.status, 200);
    let path = format!("/api/auth/tokens/{id}");
    let revoked = host.ask(Some(&alice), "DELETE", &path, None).await?;
    assert_eq!(revoked.text("message"), "Token revoked, and 2 tokens and keys created with it");
    for gone in [&child, &grandchild] {
        assert_eq!(host.get_as(gone, "/api/nodes").await?.status, 401);
    }
    assert_eq!(host.get_as(&alice, "/api/auth/keys").await?.body, json!([]));
    assert_eq!(host.get_as(&alice, "/api/nodes").await?.status, 200, "its maker stays");
    Ok(())
}

#[tokio::test]
async fn invitations_and_resets_end_with_their_creators_role() -> Result<()> {
    let host = start().await?;
    let (second, bob) = (host.person("second", "admin").await?, host.person("bob", "user").await?);
    let invite = async |role: &str| {
        host.post_as(&second, "/api/auth/invitations", json!({"role": role})).await
    };
    let (admin, viewer) = (invite("admin").await?, invite("viewer").await?);
    let reset = format!("/api/auth/users/{}/reset", bob.id);
    let reset = host.post_as(&second, &reset, json!({})).await?;
    let node = host.post_as(&second, "/api/nodes/tokens", json!({})).await?;
    assert_eq!(node.status, 200);
    let path = format!("/api/auth/users/{}", second.id);
    assert_eq!(host.patch(&path, json!({"role": "operator"})).await?.status, 200);
    let register = async |invited: &str, name: &str| {
        let body = json!({"username": name, "password": PASSWORD});
        host.ask(None, "POST", &format!("/api/auth/register?token={invited}"), Some(&body)).await
    };
    let refused = register(admin.text("token"), "eve").await?;
    assert_eq!((refused.status, refused.text("code")), (400, "invitation"));
    assert_eq!(register(viewer.text("token"), "vera").await?.status, 200, "operators may");
    let body = json!({"token": reset.text("token"), "new_password": "another horse"});
    assert_eq!(host.ask(None, "POST", "/api/auth/password/reset", Some(&body)).await?.status, 400);
    Ok(())
}

#[tokio::test]
async fn accounts_cannot_take_names_of_system_actors() -> Result<()> {
    let host = start().await?;
    let invited = host.post("/api/auth/invitations", json!({})).await?;
    let path = format!("/api/auth/register?token={}", invited.text("token"));
    for name in ["host", "Anonymous", "node", "system"] {
        let body = json!({"username": name, "password": PASSWORD});
        let refused = host.ask(None, "POST", &path, Some(&body)).await?;
        assert_eq!(refused.status, 422, "{name}: {refused:?}");
    }
    // An older account keeps its name, and events distinguish it from the host.
    let old = host.person("old", "admin").await?;
    host.rename_user(old.id, "host").await?;
    let _ = host.post_as(&old, "/api/auth/invitations", json!({})).await?;
    let log = host.get("/api/audit?action=auth.invite").await?.body;
    assert!(log.as_array().unwrap().iter().any(|entry| entry["actor"] == "account host"), "{log}");
    Ok(())
}

#[tokio::test]
async fn logout_without_session_writes_nothing() -> Result<()> {
    let host = start().await?;
    let entries = async || -> Result<Value> {
        Ok(host.get("/api/audit/verify").await?.body["entries"].clone())
    };
    let before = entries().await?;
    let unknown = format!("kohakuriver_session={}", "a".repeat(64));
    for cookie in ["kohakuriver_session=x", &unknown, "other=1"] {
        let url = format!("{}/api/auth/logout", host.host.api_url());
        let answer = reqwest::Client::new().post(url).header("cookie", cookie).send().await?;
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(entries().await?, before);
    Ok(())
}

#[tokio::test]
async fn clock_set_back_keeps_logins_working() -> Result<()> {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let host = start().await?;
    host.person("alice", "user").await?;
    let log_in = async |password: &str| {
        let body = json!({"username": "alice", "password": password});
        host.ask(None, "POST", "/api/auth/login", Some(&body)).await
    };
    while log_in("nonsense").await?.status != 429 {}
    host.step_clock(-DAY_MS);
    host.advance(Duration::from_secs(70));
    assert_eq!(log_in(PASSWORD).await?.status, 200);
    host.step_clock(2 * DAY_MS);
    assert_eq!(log_in(PASSWORD).await?.status, 200);
    Ok(())
}

//! Logging in by OpenID Connect, against a small provider of the test's own.

use std::sync::Arc;

use anyhow::{Context, Result};
use data_encoding::BASE64URL_NOPAD;
use kohakuriver_host::OidcConfig;
use kohakuriver_model::Role;
use kohakuriver_testkit::{Browser, CLIENT_SECRET, OidcProvider, TestHost};
use reqwest::Client;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

async fn start() -> Result<(Arc<OidcProvider>, TestHost, String)> {
    let provider = OidcProvider::start().await?;
    // The host must know where people reach it before it listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let url = format!("http://127.0.0.1:{port}");
    let config = OidcConfig {
        issuer: provider.issuer.clone(),
        client_id: "river".to_owned(),
        client_secret: Some(CLIENT_SECRET.to_owned()),
        public_url: url.clone(),
        groups_claim: "groups".to_owned(),
        roles: vec![("lab".to_owned(), Role::User), ("staff".to_owned(), Role::Operator)],
        default_role: None,
    };
    let host = TestHost::start_with(|host| {
        host.auth.enabled = true;
        host.auth.oidc = Some(config);
        host.port = port;
    })
    .await?;
    Ok((provider, host, url))
}

#[tokio::test]
async fn a_person_of_the_provider_is_in_with_the_role_of_their_groups() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-1", "Alice", &["lab", "choir"]);
    let mut browser = Browser::new()?;
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    let (status, to) = browser.open(&callback).await?;
    assert_eq!((status, to.as_str()), (303, "/welcome"));
    let (_, me) = browser.open(&format!("{url}/api/auth/me")).await?;
    let me: Value = serde_json::from_str(&me)?;
    assert_eq!((&me["username"], &me["role"]), (&json!("alice"), &json!("user")), "{me}");
    assert_eq!(me["external"], true);
    // A code is good once.
    assert_eq!(browser.open(&callback).await?.0, 400);
    // Their groups are asked for anew, and it is the same account.
    provider.be("s-1", "Alice", &["staff"]);
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    browser.open(&callback).await?;
    let (_, again) = browser.open(&format!("{url}/api/auth/me")).await?;
    let again: Value = serde_json::from_str(&again)?;
    assert_eq!((&again["id"], &again["role"]), (&me["id"], &json!("operator")));
    // Somebody else of that name is somebody else.
    provider.be("s-2", "alice", &["lab"]);
    let mut second = Browser::new()?;
    let callback = second.go(&format!("{url}/api/auth/oidc/start")).await?;
    second.open(&callback).await?;
    let (_, other) = second.open(&format!("{url}/api/auth/me")).await?;
    assert!(other.contains("alice-2"), "{other}");
    let log = host.get("/api/audit?action=auth.oidc").await?.body;
    assert!(log.to_string().contains("user alice-2"), "{log}");
    Ok(())
}

#[tokio::test]
async fn whoever_is_in_no_group_that_has_a_role_or_is_disabled_stays_out() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-9", "eve", &["choir"]);
    let mut browser = Browser::new()?;
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    let (status, text) = browser.open(&callback).await?;
    assert!(status == 403 && text.contains("nobody has given a role"), "{status} {text}");
    provider.be("s-3", "bob", &["lab"]);
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    assert_eq!(browser.open(&callback).await?.0, 303);
    let users = host.get("/api/auth/users").await?.body;
    let bob = users.as_array().unwrap().iter().find(|user| user["username"] == "bob").unwrap();
    let path = format!("/api/auth/users/{}", bob["id"]);
    assert_eq!(host.patch(&path, json!({"is_active": false})).await?.status, 200);
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    assert_eq!(browser.open(&callback).await?.0, 403);
    Ok(())
}

#[tokio::test]
async fn a_token_that_lies_logs_nobody_in() -> Result<()> {
    let (provider, host, url) = start().await?;
    for lie in ["issuer", "audience", "expired", "nonce", "key", "unsigned"] {
        provider.be("s-1", "alice", &["lab"]);
        provider.lie(lie);
        let mut browser = Browser::new()?;
        let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
        let (status, text) = browser.open(&callback).await?;
        assert!(status == 502 && text.contains("not valid"), "{lie}: {status} {text}");
    }
    assert_eq!(host.get("/api/auth/users").await?.body.as_array().unwrap().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_callback_that_another_browser_began_logs_nobody_in() -> Result<()> {
    let (provider, _host, url) = start().await?;
    provider.be("s-1", "mallory", &["lab"]);
    let mut mallory = Browser::new()?;
    let callback = mallory.go(&format!("{url}/api/auth/oidc/start")).await?;
    let mut victim = Browser::new()?;
    let (status, text) = victim.open(&callback).await?;
    assert!(status == 400 && text.contains("not begun here"), "{status} {text}");
    assert!(!victim.cookies.contains_key("kohakuriver_session"));
    Ok(())
}

#[tokio::test]
async fn a_command_line_gets_its_session_by_the_browser_and_nobody_else_does() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-1", "alice", &["lab"]);
    let verifier = "v".repeat(43);
    let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&verifier));
    let start = format!("{url}/api/auth/oidc/start?port=4711&challenge={challenge}");
    let mut browser = Browser::new()?;
    let mut code = async || -> Result<String> {
        let callback = browser.go(&start).await?;
        let (_, to) = browser.open(&callback).await?;
        Ok(to.strip_prefix("http://127.0.0.1:4711/?code=").context(to.clone())?.to_owned())
    };
    let first = code().await?;
    let path = "/api/auth/oidc/token";
    let wrong = json!({"code": first, "verifier": "w".repeat(43)});
    assert_eq!(host.ask(None, "POST", path, Some(&wrong)).await?.status, 400);
    let right = json!({"code": first, "verifier": verifier});
    assert_eq!(host.ask(None, "POST", path, Some(&right)).await?.status, 400, "used up");
    let right = json!({"code": code().await?, "verifier": verifier});
    let given = host.ask(None, "POST", path, Some(&right)).await?;
    assert_eq!(given.status, 200, "{given:?}");
    let cookie = format!("kohakuriver_session={}", given.text("session"));
    let me =
        Client::new().get(format!("{url}/api/auth/me")).header("cookie", cookie).send().await?;
    assert_eq!(me.json::<Value>().await?["username"], "alice");
    Ok(())
}

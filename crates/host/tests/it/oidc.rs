//! Login by OpenID Connect, against a small provider in the test.

mod handover;
mod providers;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use kohakuriver_host::OidcConfig;
use kohakuriver_model::Role;
use kohakuriver_testkit::{Browser, CLIENT_SECRET, OidcProvider, Person, TestHost};
use serde_json::{Value, json};

async fn start() -> Result<(Arc<OidcProvider>, TestHost, String)> {
    start_with(|_| {}).await
}

async fn start_with(
    configure: impl FnOnce(&mut OidcConfig),
) -> Result<(Arc<OidcProvider>, TestHost, String)> {
    let provider = OidcProvider::start().await?;
    // The host must know its public address before it listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let url = format!("http://127.0.0.1:{port}");
    let mut config = OidcConfig {
        issuer: provider.issuer.clone(),
        client_id: "river".to_owned(),
        client_secret: Some(CLIENT_SECRET.to_owned()),
        public_url: url.clone(),
        groups_claim: "groups".to_owned(),
        scopes: Vec::new(),
        roles: vec![("lab".to_owned(), Role::User), ("staff".to_owned(), Role::Operator)],
        default_role: None,
    };
    configure(&mut config);
    let host = TestHost::start_with(|host| {
        host.auth.enabled = true;
        host.auth.oidc = Some(config);
        host.port = port;
    })
    .await?;
    Ok((provider, host, url))
}

#[tokio::test]
async fn provider_login_gets_role_of_its_groups() -> Result<()> {
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
    // A code is valid once.
    assert_eq!(browser.open(&callback).await?.0, 400);
    // The groups are read again, and it is the same account.
    provider.be("s-1", "Alice", &["staff"]);
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    browser.open(&callback).await?;
    let (_, again) = browser.open(&format!("{url}/api/auth/me")).await?;
    let again: Value = serde_json::from_str(&again)?;
    assert_eq!((&again["id"], &again["role"]), (&me["id"], &json!("operator")));
    // Another subject of that name is another account.
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
async fn provider_login_without_role_or_disabled_is_refused() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-9", "eve", &["choir"]);
    let mut browser = Browser::new()?;
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    let (status, text) = browser.open(&callback).await?;
    assert!(status == 403 && text.contains("has a role here"), "{status} {text}");
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
async fn invalid_id_token_is_refused() -> Result<()> {
    let (provider, host, url) = start().await?;
    for lie in ["issuer", "audience", "party", "expired", "nonce", "key", "unsigned"] {
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
async fn callback_in_another_browser_is_refused() -> Result<()> {
    let (provider, _host, url) = start().await?;
    provider.be("s-1", "mallory", &["lab"]);
    let mut mallory = Browser::new()?;
    let callback = mallory.go(&format!("{url}/api/auth/oidc/start")).await?;
    let mut victim = Browser::new()?;
    let (status, text) = victim.open(&callback).await?;
    assert!(status == 400 && text.contains("not started on this host"), "{status} {text}");
    assert!(!victim.cookies.contains_key("kohakuriver_session"));
    Ok(())
}

/// Logs in with a browser, and returns the resulting account.
async fn log_in(browser: &mut Browser, url: &str) -> Result<Value> {
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    let (status, text) = browser.open(&callback).await?;
    anyhow::ensure!(status == 303, "{status} {text}");
    Ok(serde_json::from_str(&browser.open(&format!("{url}/api/auth/me")).await?.1)?)
}

/// Creates a token of the account that the browser is logged in to.
async fn token(host: &TestHost, browser: &Browser, url: &str) -> Result<Person> {
    let session = &browser.cookies["kohakuriver_session"];
    let made = reqwest::Client::new()
        .post(format!("{url}/api/auth/tokens/create"))
        .header("cookie", format!("kohakuriver_session={session}"))
        .json(&json!({"name": "cli"}))
        .send()
        .await?
        .json::<Value>()
        .await?;
    let token = made["token"].as_str().unwrap_or_default().to_owned();
    let me = Person { id: 0, name: String::new(), token };
    let id = host.get_as(&me, "/api/auth/me").await?.body["id"].as_i64().unwrap_or_default();
    Ok(Person { id, ..me })
}

#[tokio::test]
async fn lost_groups_end_role_sessions_and_tokens_at_once() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-1", "ann", &["staff"]);
    let mut browser = Browser::new()?;
    assert_eq!(log_in(&mut browser, &url).await?["role"], "operator");
    let ann = token(&host, &browser, &url).await?;
    assert_eq!(host.get_as(&ann, "/api/auth/users").await?.status, 200);
    // Fewer groups lower the role, of the existing token too.
    provider.be("s-1", "ann", &["lab"]);
    let mut other = Browser::new()?;
    log_in(&mut other, &url).await?;
    assert_eq!(host.get_as(&ann, "/api/auth/me").await?.text("role"), "user");
    // No group means no role: sessions and tokens end with the refused log-in.
    provider.be("s-1", "ann", &[]);
    let callback = other.go(&format!("{url}/api/auth/oidc/start")).await?;
    assert_eq!(other.open(&callback).await?.0, 403);
    assert_eq!(host.get_as(&ann, "/api/nodes").await?.status, 401);
    let (_, me) = browser.open(&format!("{url}/api/auth/me")).await?;
    assert!(me.contains("_anonymous"), "{me}");
    let path = format!("/api/auth/users/{}", ann.id);
    let users = host.get("/api/auth/users").await?.body;
    let row = users.as_array().unwrap().iter().find(|user| user["id"] == ann.id).unwrap();
    assert_eq!(row["role"], "anony", "{path} {users}");
    let log = host.get("/api/audit?action=auth.oidc").await?.body;
    let refused = log.as_array().unwrap().iter().find(|entry| entry["result"] == "oidc_refused");
    assert_eq!(refused.unwrap()["object"], "user ann", "{log}");
    // With a group again, it is the same account.
    provider.be("s-1", "ann", &["lab"]);
    let again = log_in(&mut other, &url).await?;
    assert_eq!((&again["id"], &again["role"]), (&json!(ann.id), &json!("user")));
    Ok(())
}

#[tokio::test]
async fn provider_accounts_must_log_in_again_after_their_term() -> Result<()> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (provider, host, url) = start().await?;
    provider.be("s-1", "ann", &["lab"]);
    let mut browser = Browser::new()?;
    log_in(&mut browser, &url).await?;
    let ann = token(&host, &browser, &url).await?;
    let bob = host.person("bob", "user").await?;
    host.advance(29 * DAY);
    assert_eq!(host.get_as(&ann, "/api/nodes").await?.status, 200);
    host.advance(2 * DAY);
    assert_eq!(host.get_as(&ann, "/api/nodes").await?.status, 401);
    assert_eq!(host.get_as(&bob, "/api/nodes").await?.status, 200, "has a password");
    // A log-in is enough; the token was not revoked.
    log_in(&mut browser, &url).await?;
    assert_eq!(host.get_as(&ann, "/api/nodes").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn reserved_name_of_provider_account_gets_a_number() -> Result<()> {
    let (provider, _host, url) = start().await?;
    provider.be("s-1", "Host", &["lab"]);
    let mut browser = Browser::new()?;
    assert_eq!(log_in(&mut browser, &url).await?["username"], "host-2");
    Ok(())
}

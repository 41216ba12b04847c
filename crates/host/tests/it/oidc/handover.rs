//! The session that a browser obtains for a command line.

use anyhow::{Context, Result};
use data_encoding::BASE64URL_NOPAD;
use kohakuriver_testkit::Browser;
use reqwest::Client;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::start;

/// The secrets of a program that waits for a browser, an attacker's too.
struct Waiting {
    verifier: String,
    challenge: String,
}

impl Waiting {
    fn new(letter: char) -> Self {
        let verifier = letter.to_string().repeat(43);
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&verifier));
        Self { verifier, challenge }
    }

    fn link(&self, url: &str) -> String {
        format!("{url}/api/auth/oidc/start?port=4711&challenge={}", self.challenge)
    }
}

/// Follows the login up to the confirmation page.
async fn page(browser: &mut Browser, link: &str, url: &str) -> Result<String> {
    let callback = browser.go(link).await?;
    let (status, to) = browser.open(&callback).await?;
    anyhow::ensure!(status == 303 && to.starts_with("/api/auth/oidc/confirm?"), "{status} {to}");
    Ok(format!("{url}{to}"))
}

#[tokio::test]
async fn command_line_redeems_its_session_once_with_verifier() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-1", "alice", &["lab"]);
    let waiting = Waiting::new('v');
    let mut browser = Browser::new()?;
    let mut code = async || -> Result<String> {
        let page = page(&mut browser, &waiting.link(&url), &url).await?;
        let (_, html) = browser.open(&page).await?;
        let shown = kohakuriver_api::handover_code(&waiting.challenge);
        assert!(html.contains(&shown) && html.contains("alice"), "{html}");
        let (status, to) = browser.press(&page, Some(&url)).await?;
        anyhow::ensure!(status == 303, "{status} {to}");
        assert_eq!(browser.press(&page, Some(&url)).await.ok(), None, "the page is good once");
        Ok(to.strip_prefix("http://127.0.0.1:4711/?code=").context(to.clone())?.to_owned())
    };
    let first = code().await?;
    let path = "/api/auth/oidc/token";
    let wrong = json!({"code": first, "verifier": "w".repeat(43)});
    assert_eq!(host.ask(None, "POST", path, Some(&wrong)).await?.status, 400);
    let right = json!({"code": first, "verifier": waiting.verifier});
    assert_eq!(host.ask(None, "POST", path, Some(&right)).await?.status, 400, "used up");
    let right = json!({"code": code().await?, "verifier": waiting.verifier});
    let given = host.ask(None, "POST", path, Some(&right)).await?;
    assert_eq!(given.status, 200, "{given:?}");
    assert!(!browser.cookies.contains_key("kohakuriver_session"), "it is not the browser's");
    let cookie = format!("kohakuriver_session={}", given.text("session"));
    let me =
        Client::new().get(format!("{url}/api/auth/me")).header("cookie", cookie).send().await?;
    assert_eq!(me.json::<Value>().await?["username"], "alice");
    Ok(())
}

#[tokio::test]
async fn attackers_link_gives_no_session_without_confirmation() -> Result<()> {
    let (provider, host, url) = start().await?;
    provider.be("s-1", "victim", &["staff"]);
    let (own, attacker) = (Waiting::new('v'), Waiting::new('a'));
    // The victim is logged in at the provider, which responds automatically.
    let mut victim = Browser::new()?;
    let page = page(&mut victim, &attacker.link(&url), &url).await?;
    let (status, html) = victim.open(&page).await?;
    assert_eq!(status, 200);
    assert!(!html.contains("4711/?code="), "{html}");
    let code = |waiting: &Waiting| kohakuriver_api::handover_code(&waiting.challenge);
    assert!(html.contains(&code(&attacker)) && code(&attacker) != code(&own));
    // Neither a page of the attacker's, on any port, nor a program submits the form.
    let port = url.rsplit(':').next().unwrap();
    for origin in [
        Some("http://127.0.0.1:8888"),
        Some("http://evil.example"),
        Some("null"),
        Some(&*format!("http://localhost:{port}")),
        None,
    ] {
        let (status, text) = victim.press(&page, origin).await?;
        assert!(status == 403 && text.contains("foreign_origin"), "{origin:?} {status} {text}");
    }
    // Nor does another browser, which may know the page's address.
    let mut other = Browser::new()?;
    assert_eq!(other.open(&page).await?.0, 400);
    let sessions = host.get("/api/audit?action=auth.oidc.confirm").await?.body;
    let ok = sessions.as_array().unwrap().iter().filter(|entry| entry["result"] == "ok");
    assert_eq!(ok.count(), 0, "{sessions}");
    Ok(())
}

#[tokio::test]
async fn confirm_page_form_may_redirect_to_host_and_one_port() -> Result<()> {
    let (provider, _host, url) = start().await?;
    provider.be("s-1", "alice", &["lab"]);
    let mut browser = Browser::new()?;
    let page = page(&mut browser, &Waiting::new('v').link(&url), &url).await?;
    let jar: Vec<_> = browser.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let shown = Client::new().get(page).header("cookie", jar.join("; ")).send().await?;
    let header = |name: &str| shown.headers()[name].to_str().unwrap().to_owned();
    let policy = header("content-security-policy");
    assert!(policy.contains("form-action 'self' http://127.0.0.1:4711;"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    // Without a referrer a form would come from the origin `null`.
    assert_eq!(header("referrer-policy"), "same-origin");
    Ok(())
}

//! Logging in by OpenID Connect, against a small provider of the test's own that keeps to the
//! specification: PKCE, a client secret, ID tokens signed with its key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::extract::{Form, Query, State};
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::BASE64URL_NOPAD;
use http::StatusCode;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kohakuriver_host::OidcConfig;
use kohakuriver_model::Role;
use kohakuriver_testkit::TestHost;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use reqwest::Client;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Who logs in at the provider, and what it says wrongly.
#[derive(Clone, Debug, Default)]
struct Person {
    subject: String,
    name: String,
    groups: Vec<String>,
    lie: Option<&'static str>,
}

struct Provider {
    issuer: String,
    key: KeyPair,
    other: KeyPair,
    person: Mutex<Person>,
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
}

const SECRET: &str = "client secret";

impl Provider {
    async fn start() -> Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let provider = Arc::new(Self {
            issuer: format!("http://{}", listener.local_addr()?),
            key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            other: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            person: Mutex::default(),
            codes: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/keys", get(keys))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(provider)
    }

    fn be(&self, subject: &str, name: &str, groups: &[&str]) {
        let groups = groups.iter().map(ToString::to_string).collect();
        *self.person.lock().unwrap() =
            Person { subject: subject.to_owned(), name: name.to_owned(), groups, lie: None };
    }

    fn lie(&self, lie: &'static str) {
        self.person.lock().unwrap().lie = Some(lie);
    }
}

async fn discovery(State(provider): State<Arc<Provider>>) -> Json<Value> {
    let at = |path: &str| format!("{}{path}", provider.issuer);
    Json(json!({
        "issuer": provider.issuer,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "jwks_uri": at("/keys"),
    }))
}

/// Agrees at once, as a provider does whose session still lives.
async fn authorize(
    State(provider): State<Arc<Provider>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Redirect {
    assert_eq!(asked["code_challenge_method"], "S256");
    let code = format!("code-{}", provider.codes.lock().unwrap().len());
    let url = format!("{}?code={code}&state={}", asked["redirect_uri"], asked["state"]);
    provider.codes.lock().unwrap().insert(code, asked);
    Redirect::to(&url)
}

async fn token(
    State(provider): State<Arc<Provider>>,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let refuse = |why: &str| Err((StatusCode::BAD_REQUEST, Json(json!({"error": why}))));
    let Some(asked) = provider.codes.lock().unwrap().remove(&form["code"]) else {
        return refuse("invalid_grant");
    };
    let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&form["code_verifier"]));
    if challenge != asked["code_challenge"] || form["redirect_uri"] != asked["redirect_uri"] {
        return refuse("invalid_grant");
    }
    if form.get("client_secret").map(String::as_str) != Some(SECRET) {
        return refuse("invalid_client");
    }
    let person = provider.person.lock().unwrap().clone();
    let now = jsonwebtoken::get_current_timestamp();
    let lies = |what| person.lie == Some(what);
    let claims = json!({
        "iss": if lies("issuer") { "http://evil.example" } else { provider.issuer.as_str() },
        "aud": if lies("audience") { "another client" } else { asked["client_id"].as_str() },
        "sub": person.subject,
        "exp": if lies("expired") { now - 1000 } else { now + 300 },
        "nonce": if lies("nonce") { "of another" } else { asked["nonce"].as_str() },
        "preferred_username": person.name,
        "groups": person.groups,
    });
    let key = if lies("key") { &provider.other } else { &provider.key };
    let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::ES256) };
    let key = EncodingKey::from_ec_der(&key.serialize_der());
    let mut id_token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    if lies("unsigned") {
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"none","kid":"k1"}"#);
        let body = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
        id_token = format!("{header}.{body}.");
    }
    Ok(Json(json!({"access_token": "x", "token_type": "Bearer", "id_token": id_token})))
}

async fn keys(State(provider): State<Arc<Provider>>) -> Json<Value> {
    // An uncompressed point: 4, x, y.
    let point = provider.key.der_bytes().to_vec();
    let coordinate = |part: &[u8]| BASE64URL_NOPAD.encode(part);
    Json(json!({"keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
        "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
    }]}))
}

/// A browser: follows nobody by itself, so that the test sees each step, and keeps its cookies.
struct Browser {
    http: Client,
    cookies: HashMap<String, String>,
}

impl Browser {
    fn new() -> Result<Self> {
        let http = Client::builder().redirect(Policy::none()).build()?;
        Ok(Self { http, cookies: HashMap::new() })
    }

    /// Where it is sent to, or what it is told.
    async fn open(&mut self, url: &str) -> Result<(u16, String)> {
        let jar: Vec<_> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let answer = self.http.get(url).header("cookie", jar.join("; ")).send().await?;
        for cookie in answer.headers().get_all("set-cookie") {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default().to_owned();
            let (name, value) = pair.split_once('=').context("a cookie")?;
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        let status = answer.status().as_u16();
        match answer.headers().get("location") {
            Some(location) => Ok((status, location.to_str()?.to_owned())),
            None => Ok((status, answer.text().await?)),
        }
    }

    /// The whole way to the provider and back to the callback, which is not opened.
    async fn go(&mut self, start: &str) -> Result<String> {
        let (status, provider) = self.open(start).await?;
        assert_eq!(status, 303, "{provider}");
        let (_, callback) = self.open(&provider).await?;
        Ok(callback)
    }
}

async fn start() -> Result<(Arc<Provider>, TestHost, String)> {
    let provider = Provider::start().await?;
    // The host must know where people reach it before it listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let url = format!("http://127.0.0.1:{port}");
    let config = OidcConfig {
        issuer: provider.issuer.clone(),
        client_id: "river".to_owned(),
        client_secret: Some(SECRET.to_owned()),
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

//! A small OpenID Connect provider that keeps to the specification: PKCE, a client secret, ID
//! tokens signed with its key. It agrees to everything at once, and lies when it is told to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::extract::{Form, Query, State};
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::BASE64URL_NOPAD;
use http::StatusCode;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
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

/// The provider, while its runtime lives.
#[derive(Debug)]
pub struct OidcProvider {
    pub issuer: String,
    key: KeyPair,
    other: KeyPair,
    person: Mutex<Person>,
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
}

/// What it gave the host.
pub const CLIENT_SECRET: &str = "client secret";

impl OidcProvider {
    pub async fn start() -> Result<Arc<Self>> {
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

    /// Who logs in from now on.
    pub fn be(&self, subject: &str, name: &str, groups: &[&str]) {
        let groups = groups.iter().map(ToString::to_string).collect();
        *self.person.lock().unwrap_or_else(PoisonError::into_inner) =
            Person { subject: subject.to_owned(), name: name.to_owned(), groups, lie: None };
    }

    /// What it says wrongly from now on: `issuer`, `audience`, `expired`, `nonce`, `key`, `unsigned`.
    pub fn lie(&self, lie: &'static str) {
        self.person.lock().unwrap_or_else(PoisonError::into_inner).lie = Some(lie);
    }
}

fn at<'a>(fields: &'a HashMap<String, String>, name: &str) -> &'a str {
    fields.get(name).map(String::as_str).unwrap_or_default()
}

async fn discovery(State(provider): State<Arc<OidcProvider>>) -> Json<Value> {
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
    State(provider): State<Arc<OidcProvider>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Redirect {
    let code =
        format!("code-{}", provider.codes.lock().unwrap_or_else(PoisonError::into_inner).len());
    let url = format!("{}?code={code}&state={}", at(&asked, "redirect_uri"), at(&asked, "state"));
    provider.codes.lock().unwrap_or_else(PoisonError::into_inner).insert(code, asked);
    Redirect::to(&url)
}

async fn token(
    State(provider): State<Arc<OidcProvider>>,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let refuse = |why: &str| Err((StatusCode::BAD_REQUEST, Json(json!({"error": why}))));
    let Some(asked) =
        provider.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(at(&form, "code"))
    else {
        return refuse("invalid_grant");
    };
    let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(at(&form, "code_verifier")));
    if at(&asked, "code_challenge_method") != "S256"
        || challenge != at(&asked, "code_challenge")
        || at(&form, "redirect_uri") != at(&asked, "redirect_uri")
    {
        return refuse("invalid_grant");
    }
    if form.get("client_secret").map(String::as_str) != Some(CLIENT_SECRET) {
        return refuse("invalid_client");
    }
    let person = provider.person.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = jsonwebtoken::get_current_timestamp();
    let lies = |what| person.lie == Some(what);
    let claims = json!({
        "iss": if lies("issuer") { "http://evil.example" } else { provider.issuer.as_str() },
        "aud": if lies("audience") { "another client" } else { at(&asked, "client_id") },
        "sub": person.subject,
        "exp": if lies("expired") { now - 1000 } else { now + 300 },
        "nonce": if lies("nonce") { "of another" } else { at(&asked, "nonce") },
        "preferred_username": person.name,
        "groups": person.groups,
    });
    let key = if lies("key") { &provider.other } else { &provider.key };
    let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::ES256) };
    let key = EncodingKey::from_ec_der(&key.serialize_der());
    let Ok(mut id_token) = jsonwebtoken::encode(&header, &claims, &key) else {
        return refuse("server_error");
    };
    if lies("unsigned") {
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"none","kid":"k1"}"#);
        let body = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
        id_token = format!("{header}.{body}.");
    }
    Ok(Json(json!({"access_token": "x", "token_type": "Bearer", "id_token": id_token})))
}

async fn keys(State(provider): State<Arc<OidcProvider>>) -> Json<Value> {
    // An uncompressed point: 4, x, y.
    let point = provider.key.der_bytes().to_vec();
    let coordinate = |part: &[u8]| BASE64URL_NOPAD.encode(part);
    Json(json!({"keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
        "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
    }]}))
}

/// A browser that follows nobody by itself, so that a test sees each step, and keeps its
/// cookies.
#[derive(Debug)]
pub struct Browser {
    http: Client,
    pub cookies: HashMap<String, String>,
}

impl Browser {
    pub fn new() -> Result<Self> {
        let http = Client::builder().redirect(Policy::none()).build()?;
        Ok(Self { http, cookies: HashMap::new() })
    }

    /// Where it is sent to, or what it is told.
    pub async fn open(&mut self, url: &str) -> Result<(u16, String)> {
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
    pub async fn go(&mut self, start: &str) -> Result<String> {
        let (status, provider) = self.open(start).await?;
        anyhow::ensure!(status == 303, "{provider}");
        let (_, callback) = self.open(&provider).await?;
        Ok(callback)
    }
}

//! A small OpenID Connect provider that follows the specification: PKCE, a client secret, ID tokens
//! signed with its key. It agrees to every request at once, imitates the behavior of real providers
//! ([`Behavior`]), and sends false claims when the test asks for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::extract::{Form, Query, State};
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http::{HeaderMap, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use reqwest::Client;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The account at the provider, and the false claims to send.
#[derive(Clone, Debug, Default)]
struct Person {
    /// Claims of the ID token, including `sub`.
    claims: Value,
    /// Claims of the UserInfo endpoint.
    user_info: Value,
    lie: Option<&'static str>,
}

/// Differences between providers.
#[derive(Clone, Debug, Default)]
pub struct Behavior {
    /// The supported scopes; any other is refused. `None` supports all and announces none.
    pub scopes: Option<&'static [&'static str]>,
    /// The scopes of this client, where it has fewer than the provider.
    pub client_scopes: Option<&'static [&'static str]>,
    /// The announced methods of client authentication.
    pub auth_methods: Option<&'static [&'static str]>,
    /// Whether the client sends its secret in the form and not by Basic.
    pub secret_in_form: bool,
    /// Whether the issuer ends in a slash.
    pub slash: bool,
    /// Whether the audience is a list with other entries.
    pub several_audiences: bool,
    /// Whether it publishes keys of other kinds too.
    pub odd_keys: bool,
    /// The status of the UserInfo endpoint, if it has one.
    pub user_info: Option<u16>,
}

/// The provider, which runs as long as its runtime.
#[derive(Debug)]
pub struct OidcProvider {
    pub issuer: String,
    key: KeyPair,
    other: KeyPair,
    person: Mutex<Person>,
    behavior: Mutex<Behavior>,
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
}

/// The grant that the host received.
pub const CLIENT_SECRET: &str = "client secret";
const ACCESS_TOKEN: &str = "access-token";

impl OidcProvider {
    pub async fn start() -> Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let provider = Arc::new(Self {
            issuer: format!("http://{}", listener.local_addr()?),
            key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            other: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            person: Mutex::default(),
            behavior: Mutex::default(),
            codes: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/keys", get(keys))
            .route("/userinfo", get(user_info))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(provider)
    }

    /// Sets the account that logs in.
    pub fn be(&self, subject: &str, name: &str, groups: &[&str]) {
        let claims = json!({"sub": subject, "preferred_username": name, "groups": groups});
        self.claim(claims, Value::Null);
    }

    /// Sets the claims of the ID token and of the UserInfo endpoint.
    pub fn claim(&self, claims: Value, user_info: Value) {
        *self.person.lock().unwrap_or_else(PoisonError::into_inner) =
            Person { claims, user_info, lie: None };
    }

    /// Sets the provider's behavior.
    pub fn behave(&self, behavior: Behavior) {
        *self.behavior.lock().unwrap_or_else(PoisonError::into_inner) = behavior;
    }

    fn behavior(&self) -> Behavior {
        self.behavior.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the issuer.
    fn name(&self) -> String {
        format!("{}{}", self.issuer, if self.behavior().slash { "/" } else { "" })
    }

    /// Sets the false part of the next responses: `issuer`, `audience`, `party`, `expired`,
    /// `nonce`, `key`, `unsigned`.
    pub fn lie(&self, lie: &'static str) {
        self.person.lock().unwrap_or_else(PoisonError::into_inner).lie = Some(lie);
    }
}

fn at<'a>(fields: &'a HashMap<String, String>, name: &str) -> &'a str {
    fields.get(name).map(String::as_str).unwrap_or_default()
}

async fn discovery(State(provider): State<Arc<OidcProvider>>) -> Json<Value> {
    let at = |path: &str| format!("{}{path}", provider.issuer);
    let behavior = provider.behavior();
    let mut document = json!({
        "issuer": provider.name(),
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "jwks_uri": at("/keys"),
    });
    if let Some(scopes) = behavior.scopes {
        document["scopes_supported"] = json!(scopes);
    }
    if let Some(methods) = behavior.auth_methods {
        document["token_endpoint_auth_methods_supported"] = json!(methods);
    }
    if behavior.user_info.is_some() {
        document["userinfo_endpoint"] = json!(at("/userinfo"));
    }
    Json(document)
}

async fn user_info(
    State(provider): State<Arc<OidcProvider>>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let status = provider.behavior().user_info.and_then(|code| StatusCode::from_u16(code).ok());
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
    if shown != Some(&format!("Bearer {ACCESS_TOKEN}")) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid_token"})));
    }
    let person = provider.person.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (status.unwrap_or(StatusCode::NOT_FOUND), Json(person.user_info))
}

/// Agrees at once, as a provider with an open session does.
async fn authorize(
    State(provider): State<Arc<OidcProvider>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Redirect {
    let behavior = provider.behavior();
    let known = behavior.client_scopes.or(behavior.scopes);
    let unknown = |scope: &str| known.is_some_and(|known| !known.contains(&scope));
    if at(&asked, "scope").split(' ').any(unknown) {
        // As Keycloak writes it.
        let url = format!(
            "{}?error=invalid_scope&error_description=Invalid+scopes&state={}",
            at(&asked, "redirect_uri"),
            at(&asked, "state")
        );
        return Redirect::to(&url);
    }
    let code =
        format!("code-{}", provider.codes.lock().unwrap_or_else(PoisonError::into_inner).len());
    let url = format!("{}?code={code}&state={}", at(&asked, "redirect_uri"), at(&asked, "state"));
    provider.codes.lock().unwrap_or_else(PoisonError::into_inner).insert(code, asked);
    Redirect::to(&url)
}

async fn token(
    State(provider): State<Arc<OidcProvider>>,
    headers: HeaderMap,
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
    // Each half is form-encoded first.
    let basic = BASE64.encode(format!("river:{}", CLIENT_SECRET.replace(' ', "+")).as_bytes());
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok());
    let proven = match provider.behavior().secret_in_form {
        true => form.get("client_secret").map(String::as_str) == Some(CLIENT_SECRET),
        false => shown == Some(&format!("Basic {basic}")),
    };
    if !proven {
        return refuse("invalid_client");
    }
    let person = provider.person.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = jsonwebtoken::get_current_timestamp();
    let lies = |what| person.lie == Some(what);
    let issuer = if lies("issuer") { "http://evil.example".to_owned() } else { provider.name() };
    let mut claims = json!({
        "iss": issuer,
        "aud": if lies("audience") { "another client" } else { at(&asked, "client_id") },
        "exp": if lies("expired") { now - 1000 } else { now + 300 },
        "nonce": if lies("nonce") { "of another" } else { at(&asked, "nonce") },
    });
    if provider.behavior().several_audiences || lies("party") {
        let party = if lies("party") { "another client" } else { at(&asked, "client_id") };
        claims["aud"] = json!([at(&asked, "client_id"), "account"]);
        claims["azp"] = json!(party);
    }
    if let (Some(all), Value::Object(more)) = (claims.as_object_mut(), person.claims.clone()) {
        all.extend(more);
    }
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
    Ok(Json(json!({"access_token": ACCESS_TOKEN, "token_type": "Bearer", "id_token": id_token})))
}

async fn keys(State(provider): State<Arc<OidcProvider>>) -> Json<Value> {
    // An uncompressed point: 4, x, y.
    let point = provider.key.der_bytes().to_vec();
    let coordinate = |part: &[u8]| BASE64URL_NOPAD.encode(part);
    let own = json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
        "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
    });
    let odd = [
        json!({"kty": "RSA", "kid": "k0", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "other", "kid": "k2", "alg": "other"}),
    ];
    match provider.behavior().odd_keys {
        true => Json(json!({"keys": [odd[0], odd[1], own]})),
        false => Json(json!({"keys": [own]})),
    }
}

/// A browser that follows no redirect by itself, so that a test sees each step, and stores its
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

    /// Returns the redirect's target, or the page's text.
    pub async fn open(&mut self, url: &str) -> Result<(u16, String)> {
        self.send(self.http.get(url)).await
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Result<(u16, String)> {
        let jar: Vec<_> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let answer = request.header("cookie", jar.join("; ")).send().await?;
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

    /// Submits a page's only form, as a page of `origin` would. Returns the same as [`Self::open`].
    pub async fn press(&mut self, page: &str, origin: Option<&str>) -> Result<(u16, String)> {
        let (_, html) = self.open(page).await?;
        let after = |mark: &str| {
            let (_, rest) = html.split_once(mark)?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let action = after("<form method=\"post\" action=\"").context("a form")?;
        let ticket = after("name=\"ticket\" value=\"").context("a ticket")?;
        let url = reqwest::Url::parse(page)?.join(&action)?;
        let mut request = self
            .http
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("ticket={ticket}"));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        self.send(request).await
    }

    /// Follows the login to the provider and back to the callback, which is not opened.
    pub async fn go(&mut self, start: &str) -> Result<String> {
        let (status, provider) = self.open(start).await?;
        anyhow::ensure!(status == 303, "{provider}");
        let (_, callback) = self.open(&provider).await?;
        Ok(callback)
    }
}

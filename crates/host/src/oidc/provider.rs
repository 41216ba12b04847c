//! What is said to an OpenID Connect provider: its discovery document, its keys, and the code for
//! an ID token. Specification: OpenID Connect Core 1.0, 3.1.

use std::collections::HashSet;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use kohakuriver_api::Secret;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::OidcConfig;

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Documents and tokens are a few KiB.
const LONGEST_ANSWER: usize = 256 * 1024;
const MOST_GROUPS: usize = 1000;
/// Signatures with a key that everybody may know; never a shared secret, never none.
const ALGORITHMS: [Algorithm; 7] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("the OpenID Connect provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the OpenID Connect provider answered what is none: {0}")]
    Confused(&'static str),
    #[error("the provider did not take the code: {0}")]
    Code(String),
    #[error("the provider's ID token is not valid: {0}")]
    Token(String),
}

/// Who somebody is, as far as the provider says.
#[derive(Clone, Debug)]
pub struct Claims {
    pub subject: String,
    pub preferred_username: Option<String>,
    pub email: Option<String>,
    pub full_name: Option<String>,
    pub groups: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

#[derive(Debug, Deserialize)]
struct TokenAnswer {
    id_token: String,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

#[derive(Debug)]
pub struct Provider {
    issuer: String,
    client_id: String,
    client_secret: Option<Secret>,
    groups_claim: String,
    client: OnceCell<Client>,
    discovery: OnceCell<Discovery>,
}

impl Provider {
    pub fn new(config: &OidcConfig) -> Self {
        Self {
            issuer: config.issuer.trim_end_matches('/').to_owned(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone().map(Secret),
            groups_claim: config.groups_claim.clone(),
            client: OnceCell::new(),
            discovery: OnceCell::new(),
        }
    }

    /// Where the browser goes.
    pub async fn authorize_url(&self, asked: &[(&str, &str)]) -> Result<String, ProviderError> {
        let discovery = self.discovery().await?;
        let url = Url::parse_with_params(&discovery.authorization_endpoint, asked);
        let url = url.map_err(|_| ProviderError::Confused("its authorization_endpoint"))?;
        Ok(url.into())
    }

    /// Gives the code for an ID token, and believes what that says if it is the provider's, for
    /// us, and of this log-in.
    pub async fn redeem(
        &self,
        code: &str,
        verifier: &str,
        callback: &str,
        nonce: &str,
    ) -> Result<Claims, ProviderError> {
        let discovery = self.discovery().await?;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", callback),
            ("client_id", &self.client_id),
            ("code_verifier", verifier),
        ];
        if let Some(secret) = &self.client_secret {
            form.push(("client_secret", &secret.0));
        }
        let body = serde_urlencoded(&form);
        let request = self
            .client()
            .await?
            .post(&discovery.token_endpoint)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(body);
        let (status, bytes) = answer(request).await?;
        if !status.is_success() {
            let refusal = serde_json::from_slice::<Refusal>(&bytes);
            let text = refusal.map_or_else(
                |_| format!("HTTP {}", status.as_u16()),
                |refusal| format!("{} {}", refusal.error, refusal.error_description),
            );
            return Err(ProviderError::Code(text.trim().chars().take(200).collect()));
        }
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| ProviderError::Confused("its token answer"))?;
        let keys: JwkSet = self.json(&discovery.jwks_uri, "its keys").await?;
        self.claims(&answer.id_token, &keys, &discovery.issuer, nonce)
    }

    fn claims(
        &self,
        token: &str,
        keys: &JwkSet,
        issuer: &str,
        nonce: &str,
    ) -> Result<Claims, ProviderError> {
        let invalid = |error: jsonwebtoken::errors::Error| ProviderError::Token(error.to_string());
        let header = decode_header(token).map_err(invalid)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(ProviderError::Token("it is signed in a way that proves nothing".into()));
        }
        let key = match (&header.kid, keys.keys.as_slice()) {
            (Some(kid), _) => keys.find(kid),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let key = key.ok_or_else(|| ProviderError::Token("its key is unknown".to_owned()))?;
        let key = DecodingKey::from_jwk(key).map_err(invalid)?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[&self.client_id]);
        validation.required_spec_claims =
            HashSet::from(["exp", "iss", "aud", "sub"].map(str::to_owned));
        validation.validate_nbf = true;
        let claims = decode::<Value>(token, &key, &validation).map_err(invalid)?.claims;
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        if text("nonce").as_deref() != Some(nonce) {
            return Err(ProviderError::Token("it is of another log-in".to_owned()));
        }
        let subject = text("sub").filter(|sub| (1..=255).contains(&sub.len()));
        let groups = claims[&self.groups_claim].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Claims {
            subject: subject.ok_or(ProviderError::Confused("its ID token"))?,
            preferred_username: text("preferred_username"),
            email: text("email"),
            full_name: text("name").map(|name| name.chars().take(100).collect()),
            groups: groups
                .iter()
                .filter_map(Value::as_str)
                .take(MOST_GROUPS)
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Read once; a provider that moves its paths has its clients restarted anyway.
    async fn discovery(&self) -> Result<&Discovery, ProviderError> {
        self.discovery
            .get_or_try_init(|| async {
                let url = format!("{}/.well-known/openid-configuration", self.issuer);
                let found: Discovery = self.json(&url, "its discovery document").await?;
                if found.issuer.trim_end_matches('/') != self.issuer {
                    return Err(ProviderError::Confused("its discovery document is another's"));
                }
                for url in [&found.authorization_endpoint, &found.token_endpoint, &found.jwks_uri] {
                    if !is_safe(url) {
                        return Err(ProviderError::Confused("its paths are not https"));
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        what: &'static str,
    ) -> Result<T, ProviderError> {
        let (status, bytes) = answer(self.client().await?.get(url)).await?;
        if !status.is_success() {
            return Err(ProviderError::Confused(what));
        }
        serde_json::from_slice(&bytes).map_err(|_| ProviderError::Confused(what))
    }

    async fn client(&self) -> Result<&Client, ProviderError> {
        self.client
            .get_or_try_init(|| async {
                Client::builder()
                    .dns_resolver(std::sync::Arc::new(kohakuriver_net::HttpNames))
                    .timeout(ANSWER_LIMIT)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| ProviderError::Unreachable(error.to_string()))
            })
            .await
    }
}

/// By https, or on this machine.
pub fn is_safe(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| match url.scheme() {
        "https" => true,
        "http" => matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost")),
        _ => false,
    })
}

fn serde_urlencoded(form: &[(&str, &str)]) -> String {
    // The library's own way to write a query is that of a form.
    Url::parse_with_params("http://form/", form)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

async fn answer(
    request: reqwest::RequestBuilder,
) -> Result<(reqwest::StatusCode, Vec<u8>), ProviderError> {
    let failed =
        |error: reqwest::Error| ProviderError::Unreachable(error.without_url().to_string());
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LONGEST_ANSWER {
            return Err(ProviderError::Confused("too much"));
        }
    }
    Ok((status, bytes))
}

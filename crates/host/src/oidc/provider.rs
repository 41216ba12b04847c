//! Asks an OpenID Connect provider: its discovery document, its keys, an ID token for a code, and
//! its UserInfo endpoint. Specification: OpenID Connect Core 1.0, 3.1 and 5.3.
//!
//! The crate `openidconnect` would do part of this, and was looked at (4.0.1). It brings `rsa`
//! (RUSTSEC-2023-0071), `p256`, `p384`, `ed25519-dalek`, `chrono` and second versions of `rand`,
//! `base64` and `itertools`, where `jsonwebtoken` verifies with the `aws-lc` that rustls has
//! already; and what makes log-ins fail, the providers' differences, stays ours to handle in
//! either case: which scopes, which client authentication, claims at paths, UserInfo, bounds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use kohakuriver_api::Secret;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::claims::{Claims, ClaimsError, UserInfoNeed, printable, user_info_need};
use super::config::{OidcConfig, is_safe, normalized};
use super::id_token::{Expected, KeySet, LEEWAY, verify};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Documents and tokens are a few KiB.
const LONGEST_ANSWER: usize = 256 * 1024;
/// A change of the provider's configuration is seen after this, without a restart of the host.
const DISCOVERY_LIFE: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("the OpenID Connect provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the OpenID Connect provider sent an invalid response: {0}")]
    Invalid(&'static str),
    #[error("the discovery document at {asked} names another issuer: {found}")]
    Issuer { asked: String, found: String },
    #[error("the provider refused the code: {0}")]
    Code(String),
    #[error("the provider refused this host's client ID or secret, sent as {method}: {text}")]
    Client { method: &'static str, text: String },
    #[error("the provider's ID token is not valid: {0}")]
    Token(String),
    #[error(
        "the provider's ID token is not valid at this time: it has expired, or the clocks of this host and the provider are more than {LEEWAY} s apart"
    )]
    Clock,
    #[error(transparent)]
    Claims(#[from] ClaimsError),
}

impl ProviderError {
    /// Returns the next step, if there is one.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable(_) => {
                "the host must reach the provider by https: curl ISSUER/.well-known/openid-configuration, on the host"
            }
            Self::Issuer { .. } => {
                "start the host with --oidc-issuer as the provider calls itself; of Entra ID, with the tenant's own and not 'common'"
            }
            Self::Client { .. } => {
                "compare --oidc-client-id and --oidc-client-secret-file with the provider's client, and let the client use client_secret_basic"
            }
            Self::Clock => "timedatectl set-ntp true, on the host",
            Self::Claims(ClaimsError::Overage) => {
                "let the provider send fewer groups (of Entra ID: groups assigned to the application), or use app roles: --oidc-groups-claim roles"
            }
            Self::Claims(ClaimsError::NoGroupList) => "name another claim: --oidc-groups-claim",
            Self::Invalid(_) | Self::Code(_) | Self::Token(_) | Self::Claims(_) => return None,
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    scopes_supported: Option<Vec<String>>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct TokenAnswer {
    id_token: String,
    access_token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

#[derive(Debug)]
pub struct Provider {
    /// Without a slash at its end.
    issuer: String,
    client_id: String,
    client_secret: Option<Secret>,
    groups_claim: String,
    scopes: Vec<String>,
    client: OnceCell<Client>,
    discovery: Mutex<Option<(Instant, Arc<Discovery>)>>,
}

impl Provider {
    pub fn new(config: &OidcConfig) -> Self {
        Self {
            issuer: normalized(&config.issuer).to_owned(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone().map(Secret),
            groups_claim: config.groups_claim.clone(),
            scopes: config.scopes.clone(),
            client: OnceCell::new(),
            discovery: Mutex::default(),
        }
    }

    /// Returns the URL to send the browser to, with the scopes that this provider has.
    pub async fn authorize_url(&self, asked: &[(&str, &str)]) -> Result<String, ProviderError> {
        let discovery = self.discovery().await?;
        let scope = scope(&self.scopes, discovery.scopes_supported.as_deref());
        let url = Url::parse_with_params(&discovery.authorization_endpoint, asked);
        let mut url = url.map_err(|_| ProviderError::Invalid("its authorization_endpoint"))?;
        url.query_pairs_mut().append_pair("scope", &scope);
        Ok(url.into())
    }

    /// Exchanges the code for an ID token, and returns its claims if the provider signed it for
    /// this client and this login.
    pub async fn redeem(
        &self,
        code: &str,
        verifier: &str,
        callback: &str,
        nonce: &str,
    ) -> Result<Claims, ProviderError> {
        let discovery = self.discovery().await?;
        let answer = self.token(&discovery, code, verifier, callback).await?;
        let keys: KeySet = self.json(&discovery.jwks_uri, "its keys").await?;
        let expected = Expected { issuer: &discovery.issuer, client_id: &self.client_id, nonce };
        let id_token = verify(&answer.id_token, &keys, &expected)?;
        let need = user_info_need(&id_token, &self.groups_claim)?;
        let info = match (need, &discovery.userinfo_endpoint, &answer.access_token) {
            (UserInfoNeed::None, _, _) | (_, None, _) | (_, _, None) => None,
            (need, Some(url), Some(token)) => match self.user_info(url, token).await {
                Ok(info) => Some(info),
                Err(error) if need == UserInfoNeed::Optional => {
                    tracing::debug!(%error, "UserInfo request failed");
                    None
                }
                // Without the groups, a member of the staff would be treated as a member of no
                // group.
                Err(error) => return Err(error),
            },
        };
        Ok(Claims::read(&id_token, info.as_ref(), &self.groups_claim)?)
    }

    async fn token(
        &self,
        discovery: &Discovery,
        code: &str,
        verifier: &str,
        callback: &str,
    ) -> Result<TokenAnswer, ProviderError> {
        let methods = discovery.token_endpoint_auth_methods_supported.as_deref();
        let method = if self.client_secret.is_none() { "none" } else { secret_method(methods) };
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", callback),
            ("code_verifier", verifier),
        ];
        let mut request = self.client().await?.post(&discovery.token_endpoint);
        match &self.client_secret {
            Some(secret) if method == BASIC => {
                let mut header = HeaderValue::try_from(basic(&self.client_id, &secret.0))
                    .map_err(|_| ProviderError::Invalid("this host's client secret"))?;
                header.set_sensitive(true);
                request = request.header(AUTHORIZATION, header);
            }
            Some(secret) => {
                form.extend([("client_id", &*self.client_id), ("client_secret", &secret.0)]);
            }
            None => form.push(("client_id", &self.client_id)),
        }
        let request = request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form_encoded(&form));
        let (status, bytes) = answer(request).await?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|_| ProviderError::Invalid("its token response"));
        }
        let refusal = serde_json::from_slice::<Refusal>(&bytes).ok();
        let is_client = status == StatusCode::UNAUTHORIZED
            || refusal.as_ref().is_some_and(|refusal| refusal.error == "invalid_client");
        let text = refusal.map_or_else(
            || format!("HTTP {}", status.as_u16()),
            |refusal| printable(&format!("{} {}", refusal.error, refusal.error_description), 200),
        );
        Err(match is_client {
            true => ProviderError::Client { method, text },
            false => ProviderError::Code(text),
        })
    }

    async fn user_info(&self, url: &str, token: &Secret) -> Result<Value, ProviderError> {
        let unusable = || ProviderError::Invalid("its UserInfo, which must be JSON");
        let mut bearer =
            HeaderValue::try_from(format!("Bearer {}", token.0)).map_err(|_| unusable())?;
        bearer.set_sensitive(true);
        let request = self.client().await?.get(url).header(AUTHORIZATION, bearer);
        let (status, bytes) = answer(request.header(ACCEPT, "application/json")).await?;
        if !status.is_success() {
            return Err(unusable());
        }
        serde_json::from_slice(&bytes).map_err(|_| unusable())
    }

    async fn discovery(&self) -> Result<Arc<Discovery>, ProviderError> {
        let known = self.discovery.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((since, known)) = known
            && since.elapsed() < DISCOVERY_LIFE
        {
            return Ok(known);
        }
        let url = format!("{}/.well-known/openid-configuration", self.issuer);
        let found: Discovery = self.json(&url, "its discovery document").await?;
        if normalized(&found.issuer) != self.issuer {
            let found = printable(&found.issuer, 200);
            return Err(ProviderError::Issuer { asked: url, found });
        }
        let endpoints = [&found.authorization_endpoint, &found.token_endpoint, &found.jwks_uri];
        for url in endpoints.into_iter().chain(&found.userinfo_endpoint) {
            // A remote provider must not direct requests to services of this computer.
            if !is_safe(url) || (is_https(&self.issuer) && !is_https(url)) {
                return Err(ProviderError::Invalid("its endpoints are not https"));
            }
        }
        let found = Arc::new(found);
        *self.discovery.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), found.clone()));
        Ok(found)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        url: &str,
        what: &'static str,
    ) -> Result<T, ProviderError> {
        let (status, bytes) = answer(self.client().await?.get(url)).await?;
        if !status.is_success() {
            return Err(ProviderError::Invalid(what));
        }
        serde_json::from_slice(&bytes).map_err(|_| ProviderError::Invalid(what))
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

fn is_https(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.scheme() == "https")
}

/// Returns the scopes to request. Providers refuse the whole login for an unknown one, so `groups`
/// is requested only if it is announced.
fn scope(wanted: &[String], supported: Option<&[String]>) -> String {
    let mut scopes = vec!["openid"];
    if wanted.is_empty() {
        scopes.extend(["profile", "email"]);
        if supported.is_some_and(|known| known.iter().any(|scope| scope == "groups")) {
            scopes.push("groups");
        }
    } else {
        scopes.extend(wanted.iter().map(String::as_str).filter(|scope| *scope != "openid"));
    }
    scopes.join(" ")
}

const BASIC: &str = "client_secret_basic";
const POST: &str = "client_secret_post";

/// Returns how the token endpoint accepts the client's secret. Basic is the standard's default
/// (OpenID Connect Discovery 3), and the usual registration of clients.
fn secret_method(supported: Option<&[String]>) -> &'static str {
    let has = |method: &str| supported.is_none_or(|known| known.iter().any(|one| one == method));
    if has(BASIC) || !has(POST) { BASIC } else { POST }
}

/// Makes the Basic header. RFC 6749, 2.3.1: both halves are form-encoded first, so that a colon in
/// one is no separator.
fn basic(client_id: &str, secret: &str) -> String {
    let encoded = |text: &str| form_encoded(&[("", text)]).split_off(1);
    let pair = format!("{}:{}", encoded(client_id), encoded(secret));
    format!("Basic {}", BASE64.encode(pair.as_bytes()))
}

fn form_encoded(form: &[(&str, &str)]) -> String {
    // The library encodes a query in the same way as a form.
    Url::parse_with_params("http://form/", form)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

async fn answer(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), ProviderError> {
    let failed =
        |error: reqwest::Error| ProviderError::Unreachable(error.without_url().to_string());
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if bytes.len() + chunk.len() > LONGEST_ANSWER {
            return Err(ProviderError::Invalid("more than 256 KiB"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((status, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn groups_scope_is_requested_only_if_announced() {
        let none: &[String] = &[];
        assert_eq!(scope(none, None), "openid profile email");
        assert_eq!(scope(none, Some(&split("openid email profile"))), "openid profile email");
        assert_eq!(scope(none, Some(&split("openid groups"))), "openid profile email groups");
        let own = split("profile roles openid");
        assert_eq!(scope(&own, Some(&split("groups"))), "openid profile roles");
    }

    #[test]
    fn client_secret_uses_basic_unless_only_post_is_announced() {
        assert_eq!(secret_method(None), BASIC);
        for (methods, expected) in [
            ("client_secret_post client_secret_basic", BASIC),
            ("client_secret_post private_key_jwt", POST),
            ("private_key_jwt", BASIC),
        ] {
            assert_eq!(secret_method(Some(&split(methods))), expected, "{methods}");
        }
    }

    #[test]
    fn basic_credentials_are_form_encoded_halves() {
        let header = basic("a:b", "p w+/%");
        let text = BASE64.decode(header.strip_prefix("Basic ").unwrap().as_bytes()).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "a%3Ab:p+w%2B%2F%25");
    }
}

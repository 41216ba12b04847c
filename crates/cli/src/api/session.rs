//! Login: a session from a password, and a stored token from a session.

use std::sync::Arc;

use http::HeaderValue;
use http::header::{COOKIE, SET_COOKIE};
use kohakuriver_api::{
    AddUserKey, AuthStatus, ChangePassword, CreateToken, CreatedToken, LoggedIn, Login,
    OidcHandover, OidcSession, Register, ResetPassword, UserKey,
};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checked::Checked;
use super::{ANSWER_LIMIT, Api, Person};
use crate::error::CommandError;
use crate::settings::Token;

const COOKIE_NAME: &str = "kohakuriver_session";

/// The cookie of a new session, which is not stored.
#[derive(Clone, Debug)]
pub struct Session(HeaderValue);

impl Api {
    pub async fn auth_status(&self) -> Result<AuthStatus, CommandError> {
        self.get("/api/auth/status").await
    }

    pub async fn log_in(&self, body: &Login) -> Result<(LoggedIn, Session), CommandError> {
        self.begin("/api/auth/login", &[], body).await
    }

    pub async fn register(
        &self,
        invitation: &str,
        body: &Register,
    ) -> Result<(LoggedIn, Session), CommandError> {
        self.begin("/api/auth/register", &[("token", invitation)], body).await
    }

    pub async fn reset_password(
        &self,
        body: &ResetPassword,
    ) -> Result<(LoggedIn, Session), CommandError> {
        self.begin("/api/auth/password/reset", &[], body).await
    }

    /// Changes the password and ends all sessions but the new one.
    pub async fn change_password(
        &self,
        body: &ChangePassword,
    ) -> Result<(LoggedIn, Session), CommandError> {
        self.begin("/api/auth/password", &[], body).await
    }

    /// Collects the session that a browser has obtained for this process.
    pub async fn session_of_browser(
        &self,
        handover: &OidcHandover,
    ) -> Result<(LoggedIn, Session), CommandError> {
        let path = "/api/auth/oidc/token";
        let (given, _): (OidcSession, _) = self.exchange(path, &[], Some(handover), None).await?;
        let mut cookie = HeaderValue::from_str(&format!("{COOKIE_NAME}={}", given.session.0))
            .map_err(|_| self.stranger(StatusCode::OK))?;
        cookie.set_sensitive(true);
        let session = Session(cookie);
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let request = way
            .client
            .get(format!("{}/api/auth/me", way.base))
            .timeout(ANSWER_LIMIT)
            .header(COOKIE, session.0.clone());
        let answer = request.send().await.map_err(|error| self.unreachable(way, &error))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(way, &error))?;
        let user = self.read(status, &bytes)?;
        Ok((LoggedIn { message: String::new(), user }, session))
    }

    /// Creates an API token of the session's account.
    pub async fn token_of(
        &self,
        session: &Session,
        body: &CreateToken,
    ) -> Result<CreatedToken, CommandError> {
        let path = "/api/auth/tokens/create";
        Ok(self.exchange(path, &[], Some(body), Some(session)).await?.0)
    }

    /// Registers an SSH key of the session's account.
    pub async fn add_user_key_of(
        &self,
        session: &Session,
        key: &str,
    ) -> Result<UserKey, CommandError> {
        let body = AddUserKey { key: key.to_owned() };
        Ok(self.exchange("/api/auth/keys", &[], Some(&body), Some(session)).await?.0)
    }

    pub async fn end(&self, session: &Session) -> Result<(), CommandError> {
        let path = "/api/auth/logout";
        self.exchange::<(), serde_json::Value>(path, &[], None, Some(session)).await.map(|_| ())
    }

    /// Returns a client that presents this token and no other.
    pub fn with_token(&self, token: &Token) -> Self {
        let person = Person { token: Some(token.clone()), ..self.person.clone() };
        Self { person, way: Arc::default(), ..self.clone() }
    }

    /// Returns whether the host is trusted by a CA of its own.
    pub fn is_pinned(&self) -> bool {
        self.trust.is_pinned()
    }

    /// Returns the fingerprint of that CA.
    pub fn pinned_fingerprint(&self) -> Option<String> {
        self.trust.pinned_fingerprint()
    }

    /// Refuses to send a secret over an unencrypted network.
    pub async fn may_be_told_secrets(&self) -> Result<(), CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        if self.is_https() || way.address.ip().is_loopback() || self.person.insecure {
            return Ok(());
        }
        let url = self.url().replacen("http:", "https:", 1);
        Err(CommandError::usage(format!(
            "everybody between here and {} could read your password: it is not sent over http",
            self.place()
        ))
        .hint(format!(
            "kohakuriver auth login {url}; or KOHAKURIVER_INSECURE=1 on a network that you trust"
        )))
    }

    async fn begin<B: Serialize>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: &B,
    ) -> Result<(LoggedIn, Session), CommandError> {
        self.may_be_told_secrets().await?;
        let (answer, cookie) = self.exchange(path, query, Some(body), None).await?;
        let session = cookie.ok_or_else(|| {
            CommandError::request(format!("the host {} began no session", self.place()))
                .hint("check for a proxy that removes cookies")
        })?;
        Ok((answer, session))
    }

    /// Sends a request with a session's cookie. The response may begin a new session.
    async fn exchange<B: Serialize, T: DeserializeOwned + Checked>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&B>,
        session: Option<&Session>,
    ) -> Result<(T, Option<Session>), CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let mut request = way
            .client
            .request(Method::POST, format!("{}{path}", way.base))
            .timeout(ANSWER_LIMIT)
            .query(query);
        request = match (session, &way.bearer) {
            (Some(session), _) => request.header(COOKIE, session.0.clone()),
            (None, Some(bearer)) => request.header(http::header::AUTHORIZATION, bearer),
            (None, None) => request,
        };
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.unreachable(way, &error))?;
        let status = answer.status();
        let cookie = answer.headers().get_all(SET_COOKIE).iter().find_map(session_of);
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(way, &error))?;
        if !status.is_success() {
            return Err(self.refusal(status, &bytes));
        }
        Ok((self.read(status, &bytes)?, cookie))
    }
}

/// Returns the cookie of `kohakuriver_session=...; HttpOnly; ...`.
fn session_of(header: &HeaderValue) -> Option<Session> {
    let pair = header.to_str().ok()?.split(';').next()?.trim();
    let (name, secret) = pair.split_once('=')?;
    if name != COOKIE_NAME || secret.is_empty() {
        return None;
    }
    let mut value = HeaderValue::from_str(pair).ok()?;
    value.set_sensitive(true);
    Some(Session(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_session_cookie_is_sent_and_never_printed() {
        let of = |text: &'static str| session_of(&HeaderValue::from_static(text));
        let session = of("kohakuriver_session=hunter2; HttpOnly; Path=/").unwrap();
        assert_eq!(session.0, "kohakuriver_session=hunter2");
        assert!(!format!("{session:?}").contains("hunter2"));
        assert!(of("other=1; Path=/").is_none());
        assert!(of("kohakuriver_session=; Max-Age=0").is_none());
    }
}

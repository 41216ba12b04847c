//! What one logs in with: API tokens and SSH keys of one's own.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::StatusCode;
use kohakuriver_api::{
    AddUserKey, CreateToken, CreatedToken, ErrorBody, Note, Secret, Token, UserKey,
};
use kohakuriver_model::Role;
use kohakuriver_model::bounds::{MAX_ACCOUNT_KEYS_BYTES, MAX_KEY_BYTES};
use kohakuriver_store::{NewToken, StoreError, TokenRow, UserKeyRow};
use russh::keys::ssh_key::{HashAlg, PublicKey};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::AuditTarget;
use crate::access::{Account, Caller, Credential};
use crate::accounts::{LoginError, digest, millis, new_secret};
use crate::clock::iso;
use crate::host::App;
use crate::instances::keys;

/// Nobody needs more, and somebody's loop would make them.
const MOST_TOKENS: usize = 100;
const MOST_KEYS: usize = 50;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_tokens))
        .routes(routes!(create_token))
        .routes(routes!(delete_token))
        .routes(routes!(list_user_keys, add_user_key))
        .routes(routes!(delete_user_key))
}

/// The caller's account; there is one wherever people log in.
fn own(caller: &Caller) -> Result<&Account, ApiError> {
    Ok(caller.person().ok_or(LoginError::Off)?)
}

/// The hash of the caller's token, if the caller authenticated with one.
fn own_token(person: &Account) -> Option<&str> {
    match &person.proof {
        Credential::Token(hash) => Some(hash),
        Credential::Session(_) | Credential::Key(_) | Credential::Certificate => None,
    }
}

/// When the token ends that somebody came with, if it was one. The account's own term at a provider
/// does not count: it is renewed with each log-in there.
async fn end_of_token(app: &App, person: &Account) -> Result<Option<i64>, StoreError> {
    let Some(hash) = own_token(person) else { return Ok(None) };
    let token = app.store.token(hash, app.clock.now_ms()).await?;
    Ok(token.and_then(|token| token.expires_ms))
}

/// One's own API tokens, newest first.
#[utoipa::path(get, path = "/api/auth/tokens", tag = "accounts",
    responses((status = 200, body = [Token]), (status = 503, body = ErrorBody)))]
async fn list_tokens(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Token>>, ApiError> {
    let rows = app.store.list_tokens(own(&caller)?.id).await?;
    let shown = |row: TokenRow| Token {
        id: row.id,
        made_with: row.parent,
        name: row.name,
        role: row.role.to_string(),
        created_at: iso(row.created_ms),
        expires_at: row.expires_ms.map(iso),
        last_used: row.used_ms.map(iso),
    };
    Ok(Json(rows.into_iter().map(shown).collect()))
}

/// Makes an API token of at most the caller's role. It is shown only in this answer. One that is
/// made with a token ends with that one, when it expires and when it is revoked.
#[utoipa::path(post, path = "/api/auth/tokens/create", tag = "accounts", request_body = CreateToken,
    responses((status = 200, body = CreatedToken), (status = 403, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn create_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Result<Json<CreateToken>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<CreatedToken>), ApiError> {
    let Json(request) = body?;
    let person = own(&caller)?;
    let invalid = |detail: &str| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
    let name = request.name.trim().to_owned();
    if !(1..=100).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        return Err(invalid("a token's name has 1 to 100 characters"));
    }
    let role = match request.role.as_deref() {
        None => person.role,
        Some(text) => text.parse::<Role>().map_err(|error| invalid(&error.to_string()))?,
    };
    if role > person.role {
        let detail = format!("a token of yours is at most '{}'", person.role);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail));
    }
    if app.store.list_tokens(person.id).await?.len() >= MOST_TOKENS {
        return Err(invalid("you have too many tokens: revoke some"));
    }
    let now_ms = app.clock.now_ms();
    let life = request.expires_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
    // Whoever came with a token that ends cannot make one that does not.
    let own_end = end_of_token(&app, person).await?;
    let asked = life.map(|life| now_ms.saturating_add(millis(life)));
    let expires_ms = match (asked, own_end) {
        (Some(asked), Some(end)) => Some(asked.min(end)),
        (asked, end) => asked.or(end),
    };
    let secret = new_secret();
    let hash = digest(&secret);
    let parent = own_token(person);
    let new = NewToken { user: person.id, name: &name, hash: &hash, role, expires_ms, parent };
    let id = app.store.create_token(&new, now_ms).await?;
    let made = AuditTarget(format!("token {id} of user {}", person.username));
    let created = CreatedToken {
        id,
        name,
        token: Secret(secret),
        role: role.to_string(),
        created_at: iso(now_ms),
        expires_at: expires_ms.map(iso),
        ends_with_caller: parent.is_some(),
    };
    Ok((Extension(made), Json(created)))
}

/// Revokes a token of one's own, with the tokens and SSH keys that were made with it. What was
/// opened with any of these ends.
#[utoipa::path(delete, path = "/api/auth/tokens/{id}", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn delete_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<Note>, ApiError> {
    let Some(derived) = app.store.delete_token(own(&caller)?.id, id).await? else {
        let detail = format!("you have no token {id}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_token", detail)
            .hint("kohakuriver auth token list"));
    };
    app.accounts.changed();
    let message = match derived {
        0 => "Token revoked".to_owned(),
        1 => "Token revoked, and the token or key that was made with it".to_owned(),
        more => format!("Token revoked, and {more} tokens and keys that were made with it"),
    };
    Ok(Json(Note { message }))
}

/// The SSH keys that one is known by at the gateway.
#[utoipa::path(get, path = "/api/auth/keys", tag = "accounts",
    responses((status = 200, body = [UserKey]), (status = 503, body = ErrorBody)))]
async fn list_user_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<UserKey>>, ApiError> {
    let rows = app.store.list_user_keys(own(&caller)?.id).await?;
    Ok(Json(rows.into_iter().map(shown_key).collect()))
}

/// Registers an SSH key. With a session, or a token that is all its owner is and has no end; then
/// the key goes when that token is revoked.
#[utoipa::path(post, path = "/api/auth/keys", tag = "accounts", request_body = AddUserKey,
    responses((status = 200, body = UserKey), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn add_user_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Result<Json<AddUserKey>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<UserKey>), ApiError> {
    let Json(AddUserKey { key }) = body?;
    let person = own(&caller)?;
    let invalid = |detail: &str| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
    if key.len() > 16 * 1024 {
        return Err(invalid("this is longer than any public key"));
    }
    let key = PublicKey::from_openssh(key.trim()).map_err(|_| {
        invalid("this is not an OpenSSH public key, such as the line in ~/.ssh/id_ed25519.pub")
    })?;
    let line = key.to_openssh().map_err(|_| invalid("this key cannot be written down"))?;
    let line = keys::leaned(&line);
    if line.len() > MAX_KEY_BYTES {
        return Err(invalid("this key is longer than any that OpenSSH makes"));
    }
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    // A key is good for all that its owner may; so must be what registers it.
    let whole = app.store.lookup_user(person.id).await?;
    if whole.is_none_or(|user| user.role > person.role) {
        let detail = "a token that is less than you are cannot register a key that is all of you";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail));
    }
    // And a key has no end.
    if end_of_token(&app, person).await?.is_some() {
        let detail = "a token that ends cannot register a key that does not";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "log_in_again", detail)
            .hint("log in for it: `kohakuriver auth key add` asks for your password"));
    }
    let known = app.store.list_user_keys(person.id).await?;
    let bytes: usize = known.iter().map(|key| keys::leaned(&key.line).len()).sum();
    if known.len() >= MOST_KEYS || bytes + line.len() > MAX_ACCOUNT_KEYS_BYTES {
        return Err(invalid("you have too many keys: remove some"));
    }
    let now_ms = app.clock.now_ms();
    let parent = own_token(person);
    let added = app.store.add_user_key(person.id, &fingerprint, &line, parent, now_ms).await;
    let row = match added {
        Ok(row) => row,
        Err(StoreError::Conflict { .. }) => {
            let detail = "this key is registered already";
            return Err(ApiError::new(StatusCode::CONFLICT, "key_taken", detail));
        }
        Err(error) => return Err(error.into()),
    };
    app.accounts.changed();
    Ok((Extension(AuditTarget(format!("key {fingerprint}"))), Json(shown_key(row))))
}

/// Removes a registered key of one's own. What was opened with it ends.
#[utoipa::path(delete, path = "/api/auth/keys/{id}", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn delete_user_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<Note>, ApiError> {
    if !app.store.delete_user_key(own(&caller)?.id, id).await? {
        let detail = format!("you have no key {id}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_key", detail)
            .hint("kohakuriver auth key list"));
    }
    app.accounts.changed();
    Ok(Json(Note { message: "Key removed".to_owned() }))
}

fn shown_key(row: UserKeyRow) -> UserKey {
    let key = PublicKey::from_openssh(&row.line).ok();
    UserKey {
        id: row.id,
        fingerprint: row.fingerprint,
        kind: key.as_ref().map(|key| key.algorithm().to_string()).unwrap_or_default(),
        comment: key.map(|key| key.comment().to_string()).unwrap_or_default(),
        line: row.line,
        created_at: iso(row.created_ms),
    }
}

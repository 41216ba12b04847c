//! Credentials of the caller: API tokens and SSH keys.

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

/// More than any account needs; stops runaway scripts.
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

/// Returns the caller's account; there is one wherever login is enabled.
fn own(caller: &Caller) -> Result<&Account, ApiError> {
    Ok(caller.account().ok_or(LoginError::Off)?)
}

/// Returns the hash of the caller's token, if the caller authenticated with one.
fn own_token(person: &Account) -> Option<&str> {
    match &person.credential {
        Credential::Token(hash) => Some(hash),
        Credential::Session(_) | Credential::Key(_) | Credential::Certificate => None,
    }
}

/// Returns the expiry of the caller's token, if the caller authenticated with one. The account's
/// term at a provider does not count: each log-in there renews it.
async fn end_of_token(app: &App, person: &Account) -> Result<Option<i64>, StoreError> {
    let Some(hash) = own_token(person) else { return Ok(None) };
    let token = app.store.token(hash, app.clock.now_ms()).await?;
    Ok(token.and_then(|token| token.expires_ms))
}

/// Lists the caller's API tokens, newest first.
#[utoipa::path(get, path = "/api/auth/tokens", tag = "accounts",
    responses((status = 200, body = [Token]), (status = 503, body = ErrorBody)))]
async fn list_tokens(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Token>>, ApiError> {
    let rows = app.store.list_tokens(own(&caller)?.id).await?;
    let to_api = |row: TokenRow| Token {
        id: row.id,
        made_with: row.parent,
        name: row.name,
        role: row.role.to_string(),
        created_at: iso(row.created_ms),
        expires_at: row.expires_ms.map(iso),
        last_used: row.used_ms.map(iso),
    };
    Ok(Json(rows.into_iter().map(to_api).collect()))
}

/// Creates an API token of at most the caller's role. It is returned only once. A token created
/// with another token ends with it, when that one expires or is revoked.
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
        let detail = format!("your token's role can be at most '{}'", person.role);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail));
    }
    if app.store.list_tokens(person.id).await?.len() >= MOST_TOKENS {
        return Err(invalid("you have too many tokens; revoke some"));
    }
    let now_ms = app.clock.now_ms();
    let life = request.expires_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
    // A token that expires cannot create one that does not.
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

/// Revokes a token of the caller, with the tokens and SSH keys created with it. Everything opened
/// with any of these ends.
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
        1 => "Token revoked, and the token or key created with it".to_owned(),
        more => format!("Token revoked, and {more} tokens and keys created with it"),
    };
    Ok(Json(Note { message }))
}

/// Lists the caller's registered SSH keys.
#[utoipa::path(get, path = "/api/auth/keys", tag = "accounts",
    responses((status = 200, body = [UserKey]), (status = 503, body = ErrorBody)))]
async fn list_user_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<UserKey>>, ApiError> {
    let rows = app.store.list_user_keys(own(&caller)?.id).await?;
    Ok(Json(rows.into_iter().map(key_to_api).collect()))
}

/// Registers an SSH key. Requires a session, or a token of the account's full role without an
/// expiry; the key is then removed when that token is revoked.
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
        return Err(invalid("the text is too long for a public key"));
    }
    let key = PublicKey::from_openssh(key.trim()).map_err(|_| {
        invalid("not an OpenSSH public key, such as the line in ~/.ssh/id_ed25519.pub")
    })?;
    let line = key.to_openssh().map_err(|_| invalid("this key cannot be encoded"))?;
    let line = keys::leaned(&line);
    if line.len() > MAX_KEY_BYTES {
        return Err(invalid("this key is longer than any key of OpenSSH"));
    }
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    // A key has its owner's full permissions, so the credential that registers it must have them
    // too.
    let whole = app.store.lookup_user(person.id).await?;
    if whole.is_none_or(|user| user.role > person.role) {
        let detail =
            "this token has a lower role than your account, so it cannot register an SSH key";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail));
    }
    // And a key has no expiry.
    if end_of_token(&app, person).await?.is_some() {
        let detail = "this token expires, so it cannot register an SSH key, which does not";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "log_in_again", detail)
            .hint("log in: `kohakuriver auth key add` asks for your password"));
    }
    let known = app.store.list_user_keys(person.id).await?;
    let bytes: usize = known.iter().map(|key| keys::leaned(&key.line).len()).sum();
    if known.len() >= MOST_KEYS || bytes + line.len() > MAX_ACCOUNT_KEYS_BYTES {
        return Err(invalid("you have too many keys; remove some"));
    }
    let now_ms = app.clock.now_ms();
    let parent = own_token(person);
    let added = app.store.add_user_key(person.id, &fingerprint, &line, parent, now_ms).await;
    let row = match added {
        Ok(row) => row,
        Err(StoreError::Conflict { .. }) => {
            let detail = "this key is already registered";
            return Err(ApiError::new(StatusCode::CONFLICT, "key_taken", detail));
        }
        Err(error) => return Err(error.into()),
    };
    app.accounts.changed();
    Ok((Extension(AuditTarget(format!("key {fingerprint}"))), Json(key_to_api(row))))
}

/// Removes a registered key of the caller. Everything opened with it ends.
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

fn key_to_api(row: UserKeyRow) -> UserKey {
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

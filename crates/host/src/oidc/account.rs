//! The account of a provider's identity: created at the first login, its role updated at each.

use kohakuriver_store::{NewUser, UserError, UserRow};

use super::OidcError;
use super::claims::Claims;
use super::config::OidcConfig;
use crate::accounts::LoginError;
use crate::host::App;

/// Finds or creates the account, with the role that its groups have now.
///
/// # Errors
/// It has no role (any more), is disabled, or no name is available for it.
pub async fn log_in(app: &App, config: &OidcConfig, claims: &Claims) -> Result<UserRow, OidcError> {
    let role = config.role(&claims.groups);
    let external = config.identity(&claims.subject);
    let now_ms = app.clock.now_ms();
    let known = app.store.log_in_external(&external, role, now_ms).await;
    if let Some(user) = known.map_err(LoginError::from)? {
        // Its role or its last login has changed; rights that depend on them may be gone.
        app.accounts.changed();
        if role.is_none() {
            return Err(OidcError::NoRole { username: Some(user.username) });
        }
        return if user.is_active { Ok(user) } else { Err(LoginError::Disabled.into()) };
    }
    let role = role.ok_or(OidcError::NoRole { username: None })?;
    // The name belongs to another account, whatever the provider calls this user.
    for username in claims.account_names() {
        let new = NewUser {
            display_name: claims.full_name.clone().unwrap_or_else(|| username.clone()),
            username,
            role,
            password: None,
            external: Some(external.clone()),
        };
        match app.store.create_user(&new, now_ms).await {
            Ok(user) => return Ok(user),
            Err(UserError::NameTaken(_)) => {}
            Err(error) => return Err(LoginError::from(error).into()),
        }
    }
    Err(OidcError::NoName)
}

//! Accounts and what lets people in.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A password or token: read and written as text, and never shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Answer of `GET /api/auth/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AuthStatus {
    pub auth_enabled: bool,
    pub session_expire_hours: Option<u32>,
    /// Nobody administrates this cluster yet: the host has printed an invitation.
    #[serde(default)]
    pub needs_setup: bool,
}

/// An account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub id: i64,
    pub username: String,
    pub display_name: Option<String>,
    pub is_active: bool,
    /// `viewer`, `user`, `operator` or `admin`.
    pub role: String,
    pub created_at: Option<String>,
    /// Logs in by OpenID Connect.
    #[serde(default)]
    pub external: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Login {
    pub username: String,
    pub password: Secret,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Register {
    pub username: String,
    /// At least 8 characters.
    pub password: Secret,
    #[serde(default)]
    pub display_name: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangePassword {
    pub old_password: Secret,
    pub new_password: Secret,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResetPassword {
    pub token: Secret,
    pub new_password: Secret,
}

/// Answer to whoever has logged in. The session is in the cookie.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    pub message: String,
    pub user: User,
}

/// It is done.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Note {
    pub message: String,
}

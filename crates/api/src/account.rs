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
    /// One can log in by OpenID Connect: open `/api/auth/oidc/start`.
    #[serde(default)]
    pub oidc: bool,
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
    /// All API tokens and registered SSH keys go too.
    #[serde(default)]
    pub end_tokens: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResetPassword {
    pub token: Secret,
    pub new_password: Secret,
    /// All API tokens and registered SSH keys go too.
    #[serde(default)]
    pub end_tokens: bool,
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

/// An API token, without the token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: i64,
    pub name: String,
    /// The most it may be used for; never more than its owner is.
    #[serde(default)]
    pub role: String,
    pub created_at: String,
    #[serde(default)]
    pub expires_at: Option<String>,
    pub last_used: Option<String>,
    /// The token that made it, and takes it along when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_with: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateToken {
    pub name: String,
    /// One's own unless given.
    #[serde(default)]
    pub role: Option<String>,
    /// For ever unless given.
    #[serde(default)]
    pub expires_hours: Option<u32>,
}

/// A new API token. It is shown only now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    pub id: i64,
    pub name: String,
    pub token: Secret,
    #[serde(default)]
    pub role: String,
    pub created_at: String,
    #[serde(default)]
    pub expires_at: Option<String>,
    /// It was made with a token, and is revoked when that one is.
    #[serde(default)]
    pub ends_with_caller: bool,
}

/// A registered SSH key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserKey {
    pub id: i64,
    pub fingerprint: String,
    /// For example `ssh-ed25519`.
    pub kind: String,
    pub comment: String,
    pub line: String,
    pub created_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddUserKey {
    /// One OpenSSH public key line.
    pub key: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateInvitation {
    pub role: String,
    pub group_id: Option<i64>,
    pub max_usage: u32,
    /// 1 to 720.
    pub expires_hours: u32,
}

impl Default for CreateInvitation {
    fn default() -> Self {
        Self { role: "user".to_owned(), group_id: None, max_usage: 1, expires_hours: 72 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    pub id: i64,
    /// Whole in the answer that makes it; later its beginning, to tell it from others.
    pub token: Secret,
    pub role: String,
    pub group_id: Option<i64>,
    pub max_usage: u32,
    pub usage_count: u32,
    pub remaining_uses: u32,
    pub expires_at: String,
    pub is_valid: bool,
    pub created_by_id: Option<i64>,
    pub created_at: String,
}

/// The most that somebody, or a group together, may hold; null means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Quota {
    pub instances: Option<u64>,
    pub cores: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub gpus: Option<u64>,
    /// Within the last 30 days.
    pub gpu_hours: Option<u64>,
    /// Of virtual machines.
    pub disk_bytes: Option<u64>,
}

/// What is held, in the quota's units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Held {
    pub instances: u64,
    pub cores: u64,
    pub memory_bytes: u64,
    pub gpus: u64,
    pub gpu_hours: u64,
    pub disk_bytes: u64,
}

/// A quota and what is held of it, one's own and those of one's groups.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct QuotaUse {
    pub quota: Quota,
    pub held: Held,
    pub groups: Vec<GroupQuotaUse>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GroupQuotaUse {
    pub name: String,
    pub quota: Quota,
    pub held: Held,
}

/// What of an account is to be another.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateUser {
    pub display_name: Option<String>,
    pub role: Option<String>,
    pub is_active: Option<bool>,
    pub quota: Option<Quota>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateReset {
    /// 24 unless given.
    pub expires_hours: Option<u32>,
}

/// A token with which somebody sets a new password, once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PasswordReset {
    pub token: Secret,
    pub expires_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    pub id: i64,
    pub name: String,
    /// Of all members together.
    pub quota: Quota,
    /// What each request of a member may be at most to need no operator; null: all need one.
    pub auto_approve: Option<Quota>,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Member {
    pub id: i64,
    pub username: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateGroup {
    pub name: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateGroup {
    pub quota: Option<Quota>,
    pub auto_approve: Option<Quota>,
    /// Takes the rule away: every request needs an operator again.
    pub no_auto_approve: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rejected {
    pub message: String,
    pub task_id: String,
    pub reason: Option<String>,
}

/// An entry of the audit log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub seq: i64,
    pub at: String,
    pub actor: String,
    pub actor_id: Option<i64>,
    pub address: String,
    /// Such as `vps.stop`.
    pub action: String,
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub result: String,
    pub detail: String,
    /// Covers this entry and, by the one before it, all earlier ones.
    pub hash: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditVerified {
    pub intact: bool,
    /// Entries that are there and are as they were written.
    pub entries: u64,
    /// Entries that were removed for their age or for the log's size; the log says which.
    #[serde(default)]
    pub pruned: u64,
    /// Worth noting elsewhere: it proves all entries up to now.
    pub last_hash: Option<String>,
    /// The first entry that is not as it was written.
    pub broken_at: Option<i64>,
}

/// Asks for a certificate that opens one VPS's SSH for minutes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AskSshCertificate {
    /// One line as in a `.pub` file; its private half stays where it is.
    pub public_key: String,
}

/// An OpenSSH user certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SshCertificate {
    /// The line of a `-cert.pub` file.
    pub certificate: String,
    /// From then on it opens nothing; what it has opened stays.
    pub expires_at: String,
    /// The VPS it is for.
    pub principal: String,
    /// Why it may be refused all the same, such as a node's wrong clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What a command line shows for the session that its browser has got for it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OidcHandover {
    pub code: Secret,
    /// Its SHA-256 was the challenge at the start.
    pub verifier: Secret,
}

/// The code that a command line and the host's page both show before the browser hands a session
/// over: `XXXXX-XXXXX`, 50 of the 256 bits of the challenge. A link made by somebody else has
/// another challenge, and finding one with the same code takes 2^50 tries in ten minutes.
pub fn handover_code(challenge: &str) -> String {
    // No I, L, O and U, which are read as other characters or as words.
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digit = |b: u8| {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'-' => 62,
            _ => 63,
        };
        char::from(DIGITS[usize::from(value % 32)])
    };
    let digits: Vec<char> = challenge.bytes().take(10).map(digit).collect();
    let (head, tail) = digits.split_at(digits.len() / 2);
    format!("{}-{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

/// The cookie's value, for a command line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OidcSession {
    pub session: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_code_is_ten_plain_digits_of_the_challenge() {
        assert_eq!(handover_code(&"A".repeat(43)), "00000-00000");
        let code = handover_code("zZ9-_aB0cDxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
        assert_eq!(code, "KSXYZ-T1MW3");
        assert_ne!(code, handover_code("zZ9-_aB0cExxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"));
    }
}

//! Accounts and their credentials.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A password or token: serialized as text and hidden from debug output.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Response of `GET /api/auth/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AuthStatus {
    pub auth_enabled: bool,
    pub session_expire_hours: Option<u32>,
    /// Whether the cluster has no admin yet; the host has printed an invitation for the first one.
    #[serde(default)]
    pub needs_setup: bool,
    /// Whether users can log in by OpenID Connect, at `/api/auth/oidc/start`.
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
    /// Whether the account logs in by OpenID Connect.
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
    /// Whether to delete all API tokens and registered SSH keys too.
    #[serde(default)]
    pub end_tokens: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResetPassword {
    pub token: Secret,
    pub new_password: Secret,
    /// Whether to delete all API tokens and registered SSH keys too.
    #[serde(default)]
    pub end_tokens: bool,
}

/// Response to a login or registration. The cookie contains the login session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    pub message: String,
    pub user: User,
}

/// Confirmation of a completed request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Note {
    pub message: String,
}

/// An API token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: i64,
    pub name: String,
    /// Highest role that the token grants; never above its owner's role.
    #[serde(default)]
    pub role: String,
    pub created_at: String,
    #[serde(default)]
    pub expires_at: Option<String>,
    pub last_used: Option<String>,
    /// Id of the token that created this one; revoking that token revokes this one too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_with: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateToken {
    pub name: String,
    /// Role of the token; the caller's role by default.
    #[serde(default)]
    pub role: Option<String>,
    /// Lifetime in hours; unlimited by default.
    #[serde(default)]
    pub expires_hours: Option<u32>,
}

/// A new API token. No later response contains its secret.
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
    /// Whether the token was created with another token and is revoked with it.
    #[serde(default)]
    pub ends_with_caller: bool,
}

/// A registered SSH key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserKey {
    pub id: i64,
    pub fingerprint: String,
    /// Algorithm, for example `ssh-ed25519`.
    pub kind: String,
    pub comment: String,
    pub line: String,
    pub created_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddUserKey {
    /// Public key as one OpenSSH line.
    pub key: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateInvitation {
    pub role: String,
    pub group_id: Option<i64>,
    pub max_usage: u32,
    /// Hours until the invitation expires, 1 to 720; 72 by default.
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
    /// The whole token in the response that creates it; later only its first characters.
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

/// Limits of an account, or of a group's members together; null means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Quota {
    pub instances: Option<u64>,
    pub cores: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub gpus: Option<u64>,
    /// GPU hours within the last 30 days.
    pub gpu_hours: Option<u64>,
    /// Total disk size of virtual machines, in bytes.
    pub disk_bytes: Option<u64>,
}

/// Current usage, in the units of the quota.
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

/// Quota and usage of an account and of its groups.
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

/// Changes to an account; omitted fields keep their values.
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
    /// Hours until the token expires; 24 by default.
    pub expires_hours: Option<u32>,
}

/// A token that sets a new password once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PasswordReset {
    pub token: Secret,
    pub expires_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    pub id: i64,
    pub name: String,
    /// Quota of all members together.
    pub quota: Quota,
    /// Largest request of a member that needs no operator's approval; null means that every request
    /// needs one.
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
    /// Whether to remove `auto_approve`, so that every request needs an operator's approval.
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
    /// Action, for example `vps.stop`.
    pub action: String,
    pub object: String,
    /// `ok`, or the error code of the response.
    pub result: String,
    pub detail: String,
    /// Hash of this entry and of the previous entry's hash, and thereby of all earlier entries.
    pub hash: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditVerified {
    pub intact: bool,
    /// Number of entries that are unchanged.
    pub entries: u64,
    /// Number of entries that were removed because of their age or the log's size; the log records
    /// these removals.
    #[serde(default)]
    pub pruned: u64,
    /// Hash of the last entry. A copy stored elsewhere proves all entries up to it.
    pub last_hash: Option<String>,
    /// Sequence number of the first entry that was changed.
    pub broken_at: Option<i64>,
}

/// Request for a certificate that permits SSH logins to one VPS for a few minutes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AskSshCertificate {
    /// Public key as one line of a `.pub` file; the private key stays with the caller.
    pub public_key: String,
}

/// An OpenSSH user certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SshCertificate {
    /// Content of a `-cert.pub` file.
    pub certificate: String,
    /// Time from which the certificate permits no new login; open sessions continue.
    pub expires_at: String,
    /// The VPS that the certificate is valid for.
    pub principal: String,
    /// Reason why the VPS may still refuse the certificate, such as a wrong clock of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Proof by which a command line collects the login session that its browser obtained.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OidcHandover {
    pub code: Secret,
    /// Value whose SHA-256 was the challenge at the start.
    pub verifier: Secret,
}

/// Returns the code that a command line and the host's page both display before the browser hands a
/// session over: `XXXXX-XXXXX`, 50 of the 256 bits of the challenge. An attacker's link has another
/// challenge, and finding one with the same code takes 2^50 tries in ten minutes.
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

/// Value of the session cookie, for a command line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OidcSession {
    pub session: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handover_code_is_ten_digits_of_the_challenge() {
        assert_eq!(handover_code(&"A".repeat(43)), "00000-00000");
        let code = handover_code("zZ9-_aB0cDxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
        assert_eq!(code, "KSXYZ-T1MW3");
        assert_ne!(code, handover_code("zZ9-_aB0cExxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"));
    }
}

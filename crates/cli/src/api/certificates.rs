//! SSH certificates, and whether they are needed.

use kohakuriver_api::{AskSshCertificate, AuthStatus, SshCertificate};
use reqwest::Method;

use super::{Api, Call};
use crate::error::CommandError;

impl Api {
    /// Returns whether the host has accounts.
    pub async fn people_log_in(&self) -> Result<bool, CommandError> {
        let status: AuthStatus = self.get("/api/auth/status").await?;
        Ok(status.auth_enabled)
    }

    /// Has a public key signed for one VPS.
    pub async fn ssh_certificate(
        &self,
        id: &str,
        public_key: String,
    ) -> Result<SshCertificate, CommandError> {
        let path = format!("/api/vps/{id}/ssh-cert");
        let body = AskSshCertificate { public_key };
        self.send(Call::with_body(Method::POST, &path, &body)).await
    }
}

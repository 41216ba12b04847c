//! Who an SSH client is: by a key that somebody has registered, or by a certificate of ours.

use kohakuriver_model::InstanceId;
use kohakuriver_store::{StoreError, UserRow};
use russh::keys::ssh_key::Certificate;
use russh::keys::{HashAlg, PublicKey};

use crate::access::{Account, Credential};
use crate::accounts::counts_until;
use crate::host::App;

/// Who has registered this key.
pub async fn owner_of(app: &App, key: &PublicKey) -> Option<Account> {
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let user = found(app.store.user_of_key(&fingerprint).await)?;
    person(app, user, Credential::Key(fingerprint))
}

/// Whose certificate this is, and for which instance, if we have signed it.
pub async fn holder_of(app: &App, certificate: &Certificate) -> Option<(Account, InstanceId)> {
    let shown = app.ssh_ca.shown(certificate, app.clock.now_ms())?;
    let user = found(app.store.lookup_user(shown.user).await)?;
    let user = Some(user).filter(|user| user.is_active)?;
    Some((person(app, user, Credential::Certificate)?, shown.instance))
}

fn found(looked_up: Result<Option<UserRow>, StoreError>) -> Option<UserRow> {
    looked_up.unwrap_or_else(|error| {
        tracing::warn!(%error, "an SSH client was not looked up");
        None
    })
}

/// Neither proof says how long they stay: what is revoked cuts them, or the end of the account's
/// term at its provider.
fn person(app: &App, user: UserRow, proof: Credential) -> Option<Account> {
    let expires_ms = counts_until(app, &user, None)?;
    Some(Account { id: user.id, username: user.username, role: user.role, proof, expires_ms })
}

//! Identifies the account of an SSH client, by a registered key or a certificate that this host
//! signed.

use kohakuriver_model::InstanceId;
use kohakuriver_store::{StoreError, UserRow};
use russh::keys::ssh_key::Certificate;
use russh::keys::{HashAlg, PublicKey};

use crate::access::{Account, Credential};
use crate::accounts::counts_until;
use crate::host::App;

/// Returns the account that has registered this key.
pub async fn owner_of(app: &App, key: &PublicKey) -> Option<Account> {
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let user = found(app.store.user_of_key(&fingerprint).await)?;
    account(app, user, Credential::Key(fingerprint))
}

/// Returns the account and instance of a certificate, if this host has signed it.
pub async fn holder_of(app: &App, certificate: &Certificate) -> Option<(Account, InstanceId)> {
    let holder = app.ssh_ca.verify(certificate, app.clock.now_ms())?;
    let user = found(app.store.lookup_user(holder.user).await)?;
    let user = Some(user).filter(|user| user.is_active)?;
    Some((account(app, user, Credential::Certificate)?, holder.instance))
}

fn found(looked_up: Result<Option<UserRow>, StoreError>) -> Option<UserRow> {
    looked_up.unwrap_or_else(|error| {
        tracing::warn!(%error, "looking up an SSH client failed");
        None
    })
}

/// Makes the account of an SSH login. A key or certificate does not limit how long it lasts; a
/// revocation or the end of the account's term at its provider does.
fn account(app: &App, user: UserRow, credential: Credential) -> Option<Account> {
    let expires_ms = counts_until(app, &user, None)?;
    Some(Account { id: user.id, username: user.username, role: user.role, credential, expires_ms })
}

//! Shares and offers that an account has received.

use kohakuriver_api::{Received, ReceivedOffer, ReceivedShare};
use kohakuriver_model::UserId;
use kohakuriver_store::{OfferRow, ReceivedShare as Share, ShareState, StoreError};

use super::visible::qualified;
use crate::access::Caller;
use crate::clock::iso;
use crate::host::App;

/// Lists all of them, whatever their answer.
pub async fn list(app: &App, caller: &Caller) -> Result<Received, StoreError> {
    let Some(user) = caller.user_id() else { return Ok(Received::default()) };
    let shares = app.store.received_shares(user).await?;
    let offers = app.store.offers_to(user, app.clock.now_ms()).await?;
    let share = |share: Share| ReceivedShare {
        task_id: share.id.to_string(),
        reference: called(&share),
        name: share.name,
        owner_username: share.owner,
        level: share.level.to_string(),
        groups: share.groups,
        state: share.state.as_str().to_owned(),
        shared_at: iso(share.shared_ms),
    };
    let offer = |offer: OfferRow| ReceivedOffer {
        task_id: offer.id.to_string(),
        reference: offered_as(&offer),
        name: offer.spec.name.as_ref().map(ToString::to_string),
        owner_username: offer.owner,
        offered_by: offer.made_by,
        offered_at: iso(offer.created_ms),
        expires_at: iso(offer.expires_ms),
        vps_backend: offer.spec.backend().word().to_owned(),
        required_cores: offer.spec.cores,
        required_memory_bytes: offer.spec.memory_bytes,
        gpu_count: u32::try_from(offer.spec.gpus.len()).unwrap_or(u32::MAX),
        disk_bytes: offer.spec.vm_disk_bytes,
    };
    Ok(Received {
        shares: shares.into_iter().map(share).collect(),
        offers: offers.into_iter().map(offer).collect(),
    })
}

/// Returns the name under which the receiver can use it now.
pub fn called(share: &Share) -> String {
    match (&share.alias, share.state) {
        (Some(alias), ShareState::Taken) => alias.clone(),
        _ => qualified(share.id, share.name.as_deref(), share.owner.as_deref()),
    }
}

fn offered_as(offer: &OfferRow) -> String {
    let name = offer.spec.name.as_ref().map(ToString::to_string);
    qualified(offer.id, name.as_deref(), offer.owner.as_deref())
}

/// Finds a share by id, `NAME.OWNER`, or the alias it was taken under.
pub async fn find_share(app: &App, user: UserId, text: &str) -> Result<Option<Share>, StoreError> {
    let shares = app.store.received_shares(user).await?;
    Ok(shares.into_iter().find(|share| {
        let plain = qualified(share.id, share.name.as_deref(), share.owner.as_deref());
        is(text, &share.id.to_string()) || is(text, &plain) || is(text, &called(share))
    }))
}

/// Finds an offer by id or `NAME.OWNER`.
pub async fn find_offer(
    app: &App,
    user: UserId,
    text: &str,
    now_ms: i64,
) -> Result<Option<OfferRow>, StoreError> {
    let offers = app.store.offers_to(user, now_ms).await?;
    let is_it = |offer: &OfferRow| is(text, &offer.id.to_string()) || is(text, &offered_as(offer));
    Ok(offers.into_iter().find(is_it))
}

/// Compares case-insensitively, as account names are.
fn is(text: &str, reference: &str) -> bool {
    text.eq_ignore_ascii_case(reference)
}

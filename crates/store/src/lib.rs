//! The host's database: nodes, join tokens, instances and their resources, accounts and
//! credentials, requests, and the audit log.
//!
//! SQLite in WAL mode with foreign keys on. One connection writes, a few read. Every change is one
//! transaction in one function; it compares the expected row with the current one and returns
//! [`StoreError::Stale`] after a concurrent change. An instance and its allocations are written
//! together, so no crash leaves one without the other.

mod allocations;
mod answers;
mod audit;
mod credentials;
mod error;
mod events;
mod instances;
mod nodes;
mod offers;
mod open;
mod people_keys;
mod quota;
mod requests;
mod shares;
mod tokens;
mod users;

pub use answers::{AnswerError, ReceivedShare};
pub use audit::{AuditFilter, AuditLimits, AuditRow, NewAudit, Verified};
pub use credentials::{
    AuthenticatedUser, InvitationError, InvitationRow, NewInvitation, NewSession, NewToken,
    TokenRow, UserKeyRow,
};
pub use error::StoreError;
pub use events::{EventLimits, EventRow, NewEvent};
pub use instances::{Approval, Change, CreateError, InstanceRow, NewInstance, Owner, Resolve};
pub use nodes::NodeRow;
pub use offers::{OfferError, OfferRow};
pub use open::Store;
pub use people_keys::PersonOf;
pub use requests::{Consent, Decision, NewRequest, RequestRow, RequestState};
pub use shares::{Giver, Grantee, Relation, Scope, ShareError, ShareRow, ShareState, SharedWith};
pub use tokens::RedeemError;
pub use users::{GroupRow, NewUser, UserChange, UserError, UserRow};

//! The body of every error response.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error: text for users (`detail`, `hint`) and a stable `code` for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Description of the failure, in one sentence.
    pub detail: String,
    /// Error code, short and stable, for example `not_found`.
    pub code: String,
    /// Next step, often a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

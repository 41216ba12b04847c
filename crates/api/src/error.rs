//! What every refused request answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error for people (`detail`, `hint`) and for programs (`code`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong, one sentence.
    pub detail: String,
    /// Stable and short, for example `not_found`.
    pub code: String,
    /// What to do, often the next command to type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

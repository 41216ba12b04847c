//! The result of one check.

use serde::Serialize;

use crate::error::CommandError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Works, and needs attention.
    Warn,
    /// Does not work, or is not safe.
    Bad,
}

impl State {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check, stable for programs.
    pub check: &'static str,
    pub state: State,
    pub found: String,
    /// The remedy.
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), advice: None }
    }

    pub fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn bad(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Bad, ..Self::warn(check, found, advice) }
    }

    /// Returns the finding of a check that failed.
    pub fn of(check: &'static str, state: State, failure: CommandError) -> Self {
        Self { check, state, found: failure.message, advice: failure.hint }
    }
}

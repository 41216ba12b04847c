//! Errors of commands: one sentence, one hint, one exit code.

use kohakuriver_api::ErrorBody;

/// The kind of a failure, which decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host or a node refused the request.
    Request,
    /// 404: often a result rather than an error.
    NotFound,
    /// 401: the request needs a valid credential.
    LogIn,
    /// The credential is valid, and the request needs a new login.
    LogInAgain,
    /// The VPS exists and is not reachable now; a retry may succeed.
    Unavailable,
    Usage,
    /// The host did not answer; a retry may succeed.
    Unreachable,
    /// The peer did not prove to be the host.
    Distrusted,
    Interrupted,
    /// The reader of standard output has gone: the command ends without an error.
    ReaderGone,
    /// A required program is not installed.
    MissingProgram,
    /// All errors are reported already.
    Reported,
    /// A program in a VPS ended with this code, which becomes the exit code.
    Program(u8),
}

/// The error of a command.
#[derive(Clone, Debug)]
pub struct CommandError {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    /// Whether the request may have been executed although no response arrived.
    pub maybe_done: bool,
}

impl CommandError {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, maybe_done: false }
    }

    pub fn request(message: impl Into<String>) -> Self {
        Self::new(Kind::Request, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    pub fn distrusted(message: impl Into<String>) -> Self {
        Self::new(Kind::Distrusted, message)
    }

    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    pub fn missing_program(message: impl Into<String>) -> Self {
        Self::new(Kind::MissingProgram, message)
    }

    /// Returns the error of a command that reported each failure where it happened.
    pub fn reported() -> Self {
        Self::new(Kind::Reported, "")
    }

    /// Returns the exit code of a program in a VPS, which is not a failure of this program.
    pub fn program(code: u8) -> Self {
        Self::new(Kind::Program(code), "")
    }

    /// Returns the error of a failed write to standard output.
    pub fn output(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, QuotaExceeded, StorageFull};
        if error.kind() == BrokenPipe {
            return Self::new(Kind::ReaderGone, "");
        }
        let failure = Self::request(format!("standard output was not written: {error}"));
        if matches!(error.kind(), StorageFull | QuotaExceeded) {
            return failure.hint("make room there, then run the command again");
        }
        failure
    }

    pub fn not_found(body: ErrorBody) -> Self {
        Self { hint: body.hint, ..Self::new(Kind::NotFound, body.detail) }
    }

    pub fn log_in(body: ErrorBody) -> Self {
        let hint = body.hint.or_else(|| Some("kohakuriver auth login".to_owned()));
        Self { hint, ..Self::new(Kind::LogIn, body.detail) }
    }

    pub fn log_in_again(body: ErrorBody) -> Self {
        Self { hint: body.hint, ..Self::new(Kind::LogInAgain, body.detail) }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn or_hint(mut self, hint: impl FnOnce() -> String) -> Self {
        self.hint.get_or_insert_with(hint);
        self
    }

    /// Returns whether a retry may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Unavailable)
    }

    /// Returns whether the remaining VPSes of the command cannot succeed either.
    pub fn ends_all(&self) -> bool {
        matches!(self.kind, Kind::Interrupted | Kind::Unreachable | Kind::Distrusted | Kind::LogIn)
    }

    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Request
            | Kind::NotFound
            | Kind::LogIn
            | Kind::LogInAgain
            | Kind::Unavailable
            | Kind::Reported => 1,
            Kind::Program(code) => code,
            Kind::Usage => 2,
            Kind::Unreachable | Kind::Distrusted => 3,
            Kind::MissingProgram => 127,
            Kind::Interrupted => 130,
            // 128 and the number of SIGPIPE, as shells say it of other programs.
            Kind::ReaderGone => 141,
        }
    }
}

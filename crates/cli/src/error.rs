//! How a command fails: one sentence, one hint, one exit code.

use kohakuriver_api::ErrorBody;

/// Which exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host, or a node, said no.
    Request,
    /// 404: often an answer more than an error.
    NotFound,
    /// 401: the host must know who asks, and does not.
    LogIn,
    /// The host knows who asks, and wants to see them log in for this.
    LogInAgain,
    /// The host knows the VPS and cannot get there now; asking again may help.
    Unavailable,
    Usage,
    /// Nobody answered; asking again may help.
    Unreachable,
    /// Somebody answered who may not be the host.
    Distrusted,
    Interrupted,
    /// The reader of standard output has gone: the end, and no error.
    ReaderGone,
    /// A program this one needs is not installed.
    MissingProgram,
    /// Everything is said already.
    Reported,
    /// A program in a VPS ended with this code, which becomes ours.
    Program(u8),
}

/// A failed command.
#[derive(Clone, Debug)]
pub struct CommandError {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    /// The request may have been carried out although no answer came.
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

    /// For commands that reported each of several failures where it happened.
    pub fn reported() -> Self {
        Self::new(Kind::Reported, "")
    }

    /// Nothing failed here: a program in a VPS did.
    pub fn program(code: u8) -> Self {
        Self::new(Kind::Program(code), "")
    }

    /// Standard output was not written.
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

    /// Whether asking again in a moment may help.
    pub fn may_pass(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Unavailable)
    }

    /// Whether trying the next of several VPSes makes no sense any more.
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

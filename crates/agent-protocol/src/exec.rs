//! The exec protocol: runs one program in an instance.
//!
//! ```text
//!  client                         agent
//!    Start {argv, env, tty}  ---->         once, first
//!    Stdin, StdinEnd         ---->         never more than STDIN_WINDOW beyond what was taken
//!    Signal, Resize          ---->
//!                            <----  StdinTaken {bytes}
//!                            <----  Stdout, Stderr
//!                            <----  Exit | Failed, and the end of the stream
//! ```
//!
//! The window keeps a program that does not read from standing between the client and its
//! signals. A client that goes away hangs the program up, as a terminal does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::frame::{FrameError, Message, json, put, put_json};

/// Bytes of standard input that may be under way, sent and not yet taken by the program.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// The program to run and its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// The program, looked up in PATH, and its arguments. Empty: the user's login shell.
    #[serde(default)]
    pub argv: Vec<Word>,
    /// Variables over those of the instance.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The client's own LANG and LC_*, used where the image has such a locale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locale: Vec<(String, String)>,
    /// The working directory; the user's home by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With a terminal, output and errors are one stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    pub term: String,
    pub size: Size,
}

/// The size of a terminal, in characters. Zero means "not known", as it does to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

/// An argument, which need not be text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word {
    Text(String),
    Bytes(Vec<u8>),
}

impl Word {
    /// Returns the number of bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

impl From<&OsStr> for Word {
    fn from(text: &OsStr) -> Self {
        match text.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(text.as_bytes().to_vec()),
        }
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Word> for OsString {
    fn from(word: Word) -> Self {
        match word {
            Word::Text(text) => text.into(),
            Word::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    Start(ExecStart),
    Stdin(Bytes),
    StdinEnd,
    /// To the program's process group; the number is Linux's.
    Signal(u8),
    Resize(Size),
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecExit {
    Code(i32),
    Signal(i32),
}

impl ExecExit {
    /// Returns the exit code that a shell would report.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// The reason that the program did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailed {
    /// 127 where there is no such program, 126 where it cannot be started, as shells have it.
    pub code: u8,
    pub message: String,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The program has read this many more bytes of its standard input, or never will.
    StdinTaken(u32),
    Exit(ExecExit),
    Failed(ExecFailed),
}

impl Message for ExecInput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Start(start) => put_json(out, 1, start),
            Self::Stdin(data) => put(out, 2, data),
            Self::StdinEnd => put(out, 3, &[]),
            Self::Signal(number) => put(out, 4, &[*number]),
            Self::Resize(size) => put(out, 5, &size.to_bytes()),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Start(json(&payload)?),
            2 => Self::Stdin(payload),
            3 => Self::StdinEnd,
            4 => match payload[..] {
                [number] => Self::Signal(number),
                _ => return Err(FrameError::WrongLength),
            },
            5 => Self::Resize(Size::from_bytes(&payload)?),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

impl Message for ExecOutput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Stdout(data) => put(out, 1, data),
            Self::Stderr(data) => put(out, 2, data),
            Self::StdinTaken(bytes) => put(out, 3, &bytes.to_be_bytes()),
            Self::Exit(exit) => put_json(out, 4, exit),
            Self::Failed(failed) => put_json(out, 5, failed),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Stdout(payload),
            2 => Self::Stderr(payload),
            3 => match payload[..].try_into() {
                Ok(bytes) => Self::StdinTaken(u32::from_be_bytes(bytes)),
                Err(_) => return Err(FrameError::WrongLength),
            },
            4 => Self::Exit(json(&payload)?),
            5 => Self::Failed(json(&payload)?),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

impl Size {
    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let (rows, cols) = (self.rows.to_be_bytes(), self.cols.to_be_bytes());
        [rows[0], rows[1], cols[0], cols[1]]
    }

    pub(crate) fn from_bytes(mut payload: &[u8]) -> Result<Self, FrameError> {
        if payload.len() != 4 {
            return Err(FrameError::WrongLength);
        }
        Ok(Self { rows: payload.get_u16(), cols: payload.get_u16() })
    }
}

//! The proof with which every connection to a guest's agent begins.
//!
//! A virtual machine's agent listens on a TCP port of the guest, so any process there can connect
//! to it, and any machine with the guest's address could pose as it. Both ends therefore prove that
//! they hold the instance's secret before either sends anything else:
//!
//! ```text
//!  runner                                      agent
//!                         <----  MAGIC, nonce A
//!    nonce R, HMAC(runner's label, A, R)  ---->        wrong: closed without a reply
//!                         <----  HMAC(agent's label, A, R)
//!    (wrong: closed)                                   from here on the usual greeting
//! ```
//!
//! The nonces are fresh, so a recorded proof cannot be replayed; the labels differ, so a proof
//! cannot be reflected to its sender. The connection is not encrypted: it never leaves
//! the machine, and who could listen there is root.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where a guest's agent listens.
pub const GUEST_PORT: u16 = 7722;
/// From the connection to the end of the proof, at either end.
pub const PROOF_LIMIT: Duration = Duration::from_secs(5);

const MAGIC: [u8; 8] = *b"KRGUEST1";
const RUNNER: &[u8] = b"kohakuriver guest proof 1: runner";
const AGENT: &[u8] = b"kohakuriver guest proof 1: agent";
const LENGTH: usize = 32;

type Nonce = [u8; LENGTH];
type Tag = [u8; LENGTH];

/// The secret that only the runner and one instance's agent know.
///
/// As text it is 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestSecret([u8; LENGTH]);

impl GuestSecret {
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Returns the text form. Not `Display`: it must not get into a message by accident.
    pub fn to_text(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Debug for GuestSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestSecret")
    }
}

/// The text is no secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a guest's secret is {} hexadecimal digits", 2 * LENGTH)]
pub struct ParseSecretError;

impl FromStr for GuestSecret {
    type Err = ParseSecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_ascii().as_bytes();
        let (pairs, rest) = text.as_chunks::<2>();
        let mut secret = [0; LENGTH];
        if pairs.len() != LENGTH || !rest.is_empty() {
            return Err(ParseSecretError);
        }
        for (byte, [high, low]) in secret.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(secret))
    }
}

fn digit(byte: u8) -> Result<u8, ParseSecretError> {
    let value = char::from(byte).to_digit(16).ok_or(ParseSecretError)?;
    u8::try_from(value).map_err(|_| ParseSecretError)
}

/// The reason that the peer was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("the connection failed before both ends had proven who they are")]
    Io(#[source] io::Error),
    #[error("what answers there is not this VPS's agent")]
    Stranger,
    #[error("the agent does not know this instance's secret, or was given another")]
    Rejected,
    #[error("no proof within {} s", PROOF_LIMIT.as_secs())]
    Slow,
}

/// The runner's end: proves the secret, and makes sure that the agent has it too.
///
/// # Errors
/// The peer does not know the secret; do not send it another byte.
pub async fn prove_to_agent<S>(stream: &mut S, secret: &GuestSecret) -> Result<(), ProofError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let mut hello = [0; MAGIC.len() + LENGTH];
        read(stream, &mut hello).await?;
        let (magic, theirs) = hello.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(ProofError::Stranger);
        }
        let ours: Nonce = rand::random();
        let proof = [ours, tag(secret, RUNNER, theirs, &ours)].concat();
        write(stream, &proof).await?;
        let mut answer: Tag = [0; LENGTH];
        let heard = read(stream, &mut answer).await;
        if let Err(ProofError::Io(error)) = &heard
            && is_end(error)
        {
            // It heard our proof and hung up.
            return Err(ProofError::Rejected);
        }
        heard?;
        let holds = verify(secret, AGENT, theirs, &ours, &answer);
        if holds { Ok(()) } else { Err(ProofError::Stranger) }
    })
    .await
}

/// The agent's end: verifies the peer's proof, and then proves the secret in turn.
///
/// # Errors
/// The peer did not prove the secret; nothing has been revealed to it.
pub async fn admit_runner<S>(stream: &mut S, secret: &GuestSecret) -> Result<(), ProofError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let ours: Nonce = rand::random();
        write(stream, &[&MAGIC[..], &ours].concat()).await?;
        let mut proof = [0; 2 * LENGTH];
        read(stream, &mut proof).await?;
        let (theirs, claimed) = proof.split_at(LENGTH);
        if !verify(secret, RUNNER, &ours, theirs, claimed) {
            return Err(ProofError::Stranger);
        }
        write(stream, &tag(secret, AGENT, &ours, theirs)).await
    })
    .await
}

async fn within(work: impl Future<Output = Result<(), ProofError>>) -> Result<(), ProofError> {
    tokio::time::timeout(PROOF_LIMIT, work).await.unwrap_or(Err(ProofError::Slow))
}

fn mac(secret: &GuestSecret, label: &[u8], agents: &[u8], runners: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).ok()?;
    // The nonces are of fixed length and the labels of different text: no two inputs are alike.
    [label, agents, runners].iter().for_each(|part| mac.update(part));
    Some(mac)
}

fn tag(secret: &GuestSecret, label: &[u8], agents: &[u8], runners: &[u8]) -> Tag {
    mac(secret, label, agents, runners)
        .map_or([0; LENGTH], |mac| mac.finalize().into_bytes().into())
}

/// Compares in constant time.
fn verify(secret: &GuestSecret, label: &[u8], agents: &[u8], runners: &[u8], tag: &[u8]) -> bool {
    mac(secret, label, agents, runners).is_some_and(|mac| mac.verify_slice(tag).is_ok())
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, into: &mut [u8]) -> Result<(), ProofError> {
    stream.read_exact(into).await.map(drop).map_err(ProofError::Io)
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), ProofError> {
    stream.write_all(bytes).await.map_err(ProofError::Io)?;
    stream.flush().await.map_err(ProofError::Io)
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;

//! A file from an HTTP server, into a file of ours: bounded, with its checksum on the way.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Response};
use sha2::{Digest, Sha256};

use super::space::{Room, hex};
use super::{ImageError, Report};

const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long has forgotten us.
const STALL: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// No cloud image is that large: a server that goes on sending fills no shared storage.
const MAX_BYTES: u64 = 256 << 30;
/// How often the room that is left is looked at.
const ROOM_STEP: u64 = 64 << 20;

/// Downloads `url` to `file`, and says what its SHA-256 is.
pub async fn download(url: &str, file: &Path, report: Report<'_>) -> Result<String, ImageError> {
    let failed = |reason: String| ImageError::Download { url: url.to_owned(), reason };
    let client = Client::builder()
        .dns_resolver(std::sync::Arc::new(kohakuriver_net::HttpNames))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(STALL)
        .redirect(Policy::custom(redirect))
        .user_agent(concat!("kohakuriver/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(chain(&error)))?;
    let answer = client.get(url).send().await.map_err(|error| failed(chain(&error)))?;
    if !answer.status().is_success() {
        return Err(failed(format!("the server answers {}", answer.status())));
    }
    save(answer, file, report).await.map_err(|error| match error {
        Failed::Other(error) => error,
        Failed::Transfer(reason) => failed(reason),
    })
}

/// What was asked for encrypted is not taken in the clear.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() >= MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        return attempt.error("the server redirects from HTTPS to plain HTTP");
    }
    attempt.follow()
}

enum Failed {
    Transfer(String),
    Other(ImageError),
}

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        Self::Other(error)
    }
}

async fn save(mut answer: Response, path: &Path, report: Report<'_>) -> Result<String, Failed> {
    let total = answer.content_length();
    if total.is_some_and(|total| total > MAX_BYTES) {
        return Err(Failed::Transfer("it is larger than any disk image should be".to_owned()));
    }
    let room = Room::of(path);
    room.require(total.unwrap_or(0))?;
    let write = |source| Failed::Other(ImageError::io("write", path)(source));
    let mut file = File::create_new(path).map_err(write)?;
    let mut hash = Sha256::new();
    let mut received: u64 = 0;
    let mut looked_at = 0;
    while let Some(piece) = answer.chunk().await.map_err(|e| Failed::Transfer(chain(&e)))? {
        received += piece.len() as u64;
        if received > MAX_BYTES {
            return Err(Failed::Transfer("it goes on without end".to_owned()));
        }
        if received - looked_at >= ROOM_STEP {
            room.require(0)?;
            looked_at = received;
        }
        hash.update(&piece);
        // Blocks for a page cache at most; nothing else runs in this process's thread meanwhile.
        file.write_all(&piece).map_err(write)?;
        report("downloading", total.map(|total| percent(received, total)));
    }
    if total.is_some_and(|total| total != received) {
        return Err(Failed::Transfer("the connection ended early".to_owned()));
    }
    Ok(hex(&hash.finalize()))
}

pub fn percent(done: u64, total: u64) -> u8 {
    u8::try_from((u128::from(done) * 100 / u128::from(total.max(1))).min(100)).unwrap_or(100)
}

/// reqwest's own words leave the cause out.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

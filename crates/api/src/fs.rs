//! Files of a VPS. In file names that are not valid UTF-8, invalid bytes are replaced; `kohakuriver
//! vps cp` reaches such files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Response of `GET /api/fs/{task}/list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsList {
    pub path: String,
    /// The first 1000 entries, sorted by name.
    pub entries: Vec<FsEntry>,
    /// The parent directory; null for `/`.
    pub parent: Option<String>,
    /// Whether the directory has more than `entries` contains.
    #[serde(default)]
    pub truncated: bool,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsEntry {
    pub name: String,
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Size in bytes; -1 for an entry that is not a file.
    pub size: i64,
    pub mtime: String,
    /// Permission bits, for example `rwxr-xr-x`.
    pub permissions: String,
}

/// Response of `GET /api/fs/{task}/read`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsContent {
    pub path: String,
    pub content: String,
    /// Encoding of `content`: `utf-8` or `base64`.
    pub encoding: String,
    /// Size of the whole file in bytes.
    pub size: u64,
    /// Whether `content` is only the beginning of the file.
    pub truncated: bool,
}

/// Body of `POST /api/fs/{task}/write`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsWrite {
    pub path: String,
    /// New content; at most 50 MiB after decoding.
    pub content: String,
    /// Encoding of `content`: `utf-8`, or `base64` for binary data.
    #[serde(default = "utf8")]
    pub encoding: String,
    #[serde(default = "yes")]
    pub create_parents: bool,
}

/// Response of `POST /api/fs/{task}/write` and `PUT /api/fs/{task}/raw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsWritten {
    pub path: String,
    pub size: u64,
    pub success: bool,
}

/// Body of `POST /api/fs/{task}/mkdir`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsMkdir {
    pub path: String,
    /// Whether to create missing parent directories and accept an existing directory.
    #[serde(default = "yes")]
    pub parents: bool,
}

/// Body of `POST /api/fs/{task}/rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsRename {
    pub source: String,
    pub destination: String,
    #[serde(default)]
    pub overwrite: bool,
}

/// Response of `mkdir` and `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsDone {
    pub message: String,
    pub path: String,
}

/// Response of `rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsRenamed {
    pub message: String,
    pub source: String,
    pub destination: String,
}

/// Response of `GET /api/fs/{task}/stat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsStat {
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Size in bytes; -1 for an entry that is not a file.
    pub size: i64,
    pub mtime: String,
    pub permissions: String,
    /// Name of the owner, or the user id where no name is known.
    pub owner: String,
    pub is_readable: bool,
    pub is_writable: bool,
    /// Whether the file name's extension suggests binary content; the content is not inspected.
    pub is_binary: bool,
}

fn utf8() -> String {
    "utf-8".to_owned()
}

fn yes() -> bool {
    true
}

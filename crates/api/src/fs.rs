//! Files of a VPS. Names that are no text are shown with what cannot be shown replaced; such files
//! are reached with `kohakuriver vps cp`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/fs/{task}/list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsList {
    pub path: String,
    /// The first thousand by name.
    pub entries: Vec<FsEntry>,
    /// The directory above, null of `/`.
    pub parent: Option<String>,
    /// There are more than `entries` shows.
    #[serde(default)]
    pub truncated: bool,
}

/// One file of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsEntry {
    pub name: String,
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes, -1 of what is no file.
    pub size: i64,
    pub mtime: String,
    /// `rwxr-xr-x`
    pub permissions: String,
}

/// Answer of `GET /api/fs/{task}/read`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsContent {
    pub path: String,
    pub content: String,
    /// `utf-8` or `base64`.
    pub encoding: String,
    /// Of the whole file.
    pub size: u64,
    /// `content` is only its beginning.
    pub truncated: bool,
}

/// Body of `POST /api/fs/{task}/write`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsWrite {
    pub path: String,
    /// At most 50 MiB, decoded.
    pub content: String,
    /// `utf-8`, or `base64` for what is no text.
    #[serde(default = "utf8")]
    pub encoding: String,
    #[serde(default = "yes")]
    pub create_parents: bool,
}

/// Answer of `POST /api/fs/{task}/write` and `PUT /api/fs/{task}/raw`.
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
    /// Also make what is missing above it, and be content where it is there.
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

/// Answer of `mkdir` and `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsDone {
    pub message: String,
    pub path: String,
}

/// Answer of `rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsRenamed {
    pub message: String,
    pub source: String,
    pub destination: String,
}

/// Answer of `GET /api/fs/{task}/stat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsStat {
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes, -1 of what is no file.
    pub size: i64,
    pub mtime: String,
    pub permissions: String,
    /// A name, or a number where there is none.
    pub owner: String,
    pub is_readable: bool,
    pub is_writable: bool,
    /// By the name's end; nobody has looked into it.
    pub is_binary: bool,
}

fn utf8() -> String {
    "utf-8".to_owned()
}

fn yes() -> bool {
    true
}

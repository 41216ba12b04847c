//! The exact path that a copy goes to, by the rules of `cp` and `scp`.
//!
//! ```text
//!  TARGET is a directory       TARGET/NAME, or TARGET itself for SOURCE/.
//!  TARGET is a file            that file, replaced; not for a directory
//!  TARGET does not exist       that name, in an existing directory
//! ```
//!
//! When a command is repeated after an interruption, an unfinished directory at a new name would look
//! like an existing one, and the source would be copied into it. So it holds a marker file `.kr-part`
//! until it is complete. The marker names the source: a copy of another source does not resume there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use kohakuriver_agent_protocol::files::{Ask, Kind};
use sha2::{Digest, Sha256};

use super::local;
use super::place::{name_of, says_directory};
use super::remote::{Remote, word};
use crate::error::CommandError;
use crate::identity;

const UNFINISHED: &str = ".kr-part";

/// Identifies the copied tree by a digest, because a shared VPS must not learn the paths of this
/// computer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// Digests an origin; `machine` is a computer's name or a VPS's id.
    fn of(kind: &str, machine: &str, path: &Path) -> Self {
        let path: PathBuf = path.components().collect();
        let mut digest = Sha256::new();
        for part in [kind.as_bytes(), machine.as_bytes(), path.as_os_str().as_bytes()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self(HEXLOWER.encode(&digest.finalize()))
    }

    fn is_named_by(&self, mark: &[u8]) -> bool {
        mark.trim_ascii() == self.0.as_bytes()
    }
}

/// The source's or the target's side of a copy.
#[derive(Debug)]
pub enum Side<'a> {
    Local,
    Remote(Box<Remote<'a>>),
}

/// The resolved target.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    pub root: PathBuf,
    /// The path does not exist yet.
    pub fresh: bool,
    pub is_tree: bool,
    /// A tree at a new name, which is marked until it is complete.
    pub marked: bool,
}

impl Side<'_> {
    /// Returns the identity of the tree at `source` for marker files.
    pub fn origin(&self, source: &Path) -> Origin {
        match self {
            Self::Local => {
                let real = source.canonicalize().unwrap_or_else(|_| source.to_owned());
                Origin::of("local", &identity::machine(), &real)
            }
            Self::Remote(remote) => Origin::of("vps", remote.id(), source),
        }
    }

    /// Returns whether `root` is an unfinished copy of this source.
    async fn is_begun(&mut self, root: &Path, origin: &Origin) -> Result<bool, CommandError> {
        let mark = root.join(UNFINISHED);
        let text = match self {
            Self::Local => {
                let is_file = mark.symlink_metadata().is_ok_and(|meta| meta.is_file());
                is_file.then(|| std::fs::read(&mark).unwrap_or_default())
            }
            Self::Remote(remote) => remote.short_text(&mark).await?,
        };
        Ok(text.is_some_and(|text| origin.is_named_by(&text)))
    }

    /// Inspects a path, following symlinks. The inner error means that the path does not exist.
    pub async fn kind(&mut self, path: &Path) -> Result<Result<Kind, CommandError>, CommandError> {
        match self {
            Self::Local => Ok(local_kind(path)),
            Self::Remote(remote) => Ok(remote.find(path).await?.map(|entry| entry.kind)),
        }
    }

    /// Resolves the path that a copy of `source` to `target` goes to.
    pub async fn settle(
        &mut self,
        source: &Path,
        origin: &Origin,
        is_directory: bool,
        target: &Path,
    ) -> Result<Target, CommandError> {
        let shown = target.display();
        let plain: PathBuf = target.components().collect();
        match self.kind(target).await? {
            Ok(Kind::Directory) if is_directory => {
                if self.is_begun(&plain, origin).await? {
                    return Ok(Target { root: plain, fresh: false, is_tree: true, marked: true });
                }
                let Some(name) = name_of(source) else {
                    return Ok(Target { root: plain, fresh: false, is_tree: true, marked: false });
                };
                self.below(plain.join(name), true).await
            }
            Ok(Kind::Directory) => {
                let name = name_of(source).unwrap_or(OsStr::new("copy"));
                self.below(plain.join(name), false).await
            }
            Ok(Kind::File | Kind::Symlink | Kind::Other) if is_directory => Err(
                CommandError::request(format!("{shown} is a file: a directory cannot replace it"))
                    .hint("name another target, or delete it first"),
            ),
            Ok(Kind::File | Kind::Symlink | Kind::Other) => {
                Ok(Target { root: self.real(plain), fresh: false, is_tree: false, marked: false })
            }
            Err(missing) if !is_directory && says_directory(target) => Err(missing
                .hint(format!("create the directory first, or write {} without the slash", shown))),
            Err(_) => {
                let parent = match plain.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    Some(_) | None => Path::new("."),
                };
                match self.kind(parent).await? {
                    Ok(Kind::Directory) => Ok(Target {
                        root: plain,
                        fresh: true,
                        is_tree: is_directory,
                        marked: is_directory,
                    }),
                    Ok(_) => {
                        let parent = parent.display();
                        Err(CommandError::request(format!("{parent} is not a directory")))
                    }
                    Err(missing) => {
                        Err(missing.hint("create the directory first, or name an existing one"))
                    }
                }
            }
        }
    }

    /// Resolves a name in an existing directory.
    async fn below(&mut self, root: PathBuf, is_directory: bool) -> Result<Target, CommandError> {
        let shown = root.display();
        match self.kind(&root).await? {
            Ok(Kind::Directory) if !is_directory => Err(CommandError::request(format!(
                "{shown} is a directory: a file cannot replace it"
            ))),
            Ok(Kind::File | Kind::Symlink | Kind::Other) if is_directory => Err(
                CommandError::request(format!("{shown} is a file: a directory cannot replace it")),
            ),
            Ok(_) => {
                let (root, is_tree) = (self.real(root), is_directory);
                Ok(Target { root, fresh: false, is_tree, marked: false })
            }
            Err(_) => Ok(Target { root, fresh: true, is_tree: is_directory, marked: false }),
        }
    }

    /// Resolves a local symlink, so that its file is replaced and not the symlink. The agent does the
    /// same for its side.
    fn real(&self, path: PathBuf) -> PathBuf {
        match self {
            Self::Local => path.canonicalize().unwrap_or(path),
            Self::Remote(_) => path,
        }
    }

    /// Creates the root of a tree.
    pub async fn begin(&mut self, target: &Target, origin: &Origin) -> Result<(), CommandError> {
        let mark = target.root.join(UNFINISHED);
        match self {
            Self::Local => {
                let fail = |error| CommandError::request(local::sentence(&target.root, &error));
                // Its mode arrives with the tree's items.
                match std::fs::create_dir(&target.root) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(fail(error));
                    }
                    Ok(()) | Err(_) => {}
                }
                if target.marked { std::fs::write(mark, &origin.0).map_err(fail) } else { Ok(()) }
            }
            Self::Remote(remote) => {
                let path = word(&target.root);
                remote.act(Ask::Mkdir { path, parents: true, mode: None }).await?;
                if target.marked { remote.note(&mark, origin.0.as_bytes()).await } else { Ok(()) }
            }
        }
    }

    /// Removes the marker of a complete tree, and waits until a VPS has written the tree to disk.
    pub async fn finish(&mut self, target: &Target, whole: bool) -> Result<(), CommandError> {
        let marked = target.marked && whole;
        let mark = target.root.join(UNFINISHED);
        match self {
            Self::Local => {
                if marked {
                    let _ = std::fs::remove_file(mark);
                }
                Ok(())
            }
            Self::Remote(remote) => {
                if marked {
                    remote.act(Ask::Delete { path: word(&mark), recursive: false }).await?;
                }
                // A file that could not be copied may not exist; its directory does.
                let parent = target.root.parent().filter(|_| !target.is_tree);
                remote.act(Ask::Sync { path: word(parent.unwrap_or(&target.root)) }).await
            }
        }
    }
}

fn local_kind(path: &Path) -> Result<Kind, CommandError> {
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Ok(Kind::Directory),
        Ok(meta) if meta.is_file() => Ok(Kind::File),
        Ok(_) => Ok(Kind::Other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let there = path.ancestors().skip(1).find(|parent| parent.exists());
            let there = there.filter(|there| Some(*there) != path.parent());
            Err(CommandError::request(match there {
                Some(there) if !there.as_os_str().is_empty() => {
                    format!("{} does not exist; only {} does", path.display(), there.display())
                }
                Some(_) | None => format!("{} does not exist", path.display()),
            }))
        }
        Err(error) => Err(CommandError::request(local::sentence(path, &error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn settle(dir: &Path, source: &str, is_directory: bool, target: &str) -> Option<String> {
        let root = dir.canonicalize().unwrap();
        let mut target = root.join(target).into_os_string();
        if target.is_empty() {
            target.push(".");
        }
        let (source, origin) = (Path::new(source), Side::Local.origin(Path::new(source)));
        let settled = Side::Local.settle(source, &origin, is_directory, Path::new(&target)).await;
        let target = settled.ok()?;
        Some(target.root.strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn copy_goes_where_cp_would_put_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("there/tree")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let dir = dir.path();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(settle(dir, "/x/f", false, "there").await, some("there/f"));
        assert_eq!(settle(dir, "/x/f", false, "there/").await, some("there/f"));
        assert_eq!(settle(dir, "/x/f", false, "new").await, some("new"));
        assert_eq!(settle(dir, "/x/f", false, "new/").await, None);
        assert_eq!(settle(dir, "/x/f", false, "no/new").await, None);
        assert_eq!(settle(dir, "/x/f", false, "file").await, some("file"));
        assert_eq!(settle(dir, "/x/tree", false, "there").await, None, "a directory of that name");
        assert_eq!(settle(dir, "/x/tree/", true, "there").await, some("there/tree"));
        assert_eq!(settle(dir, "/x/tree/.", true, "there").await, some("there"));
        assert_eq!(settle(dir, "/x/tree", true, "new").await, some("new"));
        assert_eq!(settle(dir, "/x/tree", true, "new/").await, some("new"));
        assert_eq!(settle(dir, "/x/tree", true, "file").await, None);
        assert_eq!(settle(dir, "/x/tree", true, "no/new").await, None);
    }

    #[tokio::test]
    async fn unfinished_tree_is_continued_by_its_own_source_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("copy");
        let settle = |source: &'static str| {
            let target = &target;
            async move {
                let (source, origin) = (Path::new(source), Side::Local.origin(Path::new(source)));
                (Side::Local.settle(source, &origin, true, target).await.unwrap(), origin)
            }
        };
        let (first, origin) = settle("/x/tree").await;
        assert!(first.fresh && first.marked);
        Side::Local.begin(&first, &origin).await.unwrap();
        for same in ["/x/tree", "/x/tree/", "/x/tree/."] {
            assert_eq!(settle(same).await.0.root, first.root, "{same}");
        }
        assert_eq!(settle("/x/other").await.0.root, first.root.join("other"));
        // Of a version that did not name the source.
        std::fs::write(first.root.join(UNFINISHED), "").unwrap();
        assert_eq!(settle("/x/tree").await.0.root, first.root.join("tree"));
        Side::Local.finish(&first, true).await.unwrap();
        assert!(!first.root.join(UNFINISHED).exists());
    }
}

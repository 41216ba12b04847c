//! The items that pass through the stages of a copy.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use kohakuriver_agent_protocol::files::{Entry, Kind, Partial, Time, Word};

/// A file, directory or symlink of the source.
#[derive(Clone, Debug)]
pub struct Item {
    /// Path relative to the source's root; empty for the root itself.
    pub way: PathBuf,
    pub what: What,
    pub mode: u32,
    pub mtime: Time,
}

#[derive(Clone, Debug)]
pub enum What {
    File { size: u64 },
    Directory,
    Link { target: PathBuf },
}

/// The decision for an item.
#[derive(Debug)]
pub enum Choice {
    /// Copy the item; a file from this byte on.
    Copy { offset: u64 },
    /// Skip the item: the target has it.
    Skip,
}

/// A piece of content. A file is `Begin`, any number of `Data`, and `End` or `Broken`.
#[derive(Debug)]
pub enum Part {
    Directory(Item),
    Link(Item),
    Begin {
        item: Item,
        size: u64,
        offset: u64,
    },
    Data(Bytes),
    End,
    /// The source could not be read to its end, for this reason.
    Broken(String),
}

impl Item {
    /// Converts an entry of a walk. Returns the text of the error if its kind is not copied.
    pub fn of(entry: Entry) -> Result<Self, String> {
        let way = path(entry.name);
        let shown = way.display().to_string();
        // The VPS is not trusted: a path it sends must not lead outside the copied tree.
        if !way.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("{shown} is outside the copied tree"));
        }
        let what = match (entry.kind, entry.target) {
            (Kind::File, _) => What::File { size: entry.size },
            (Kind::Directory, _) => What::Directory,
            (Kind::Symlink, Some(target)) => What::Link { target: path(target) },
            (Kind::Symlink, None) => {
                return Err(format!("{shown} is a symlink that cannot be read"));
            }
            (Kind::Other, _) => return Err(format!("{shown} is a device, pipe or socket")),
        };
        Ok(Self { way, what, mode: entry.mode, mtime: entry.mtime })
    }

    /// Returns the path of the item below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        // Joining an empty path would add a slash, and a file's path cannot end in one.
        if self.way.as_os_str().is_empty() { root.to_owned() } else { root.join(&self.way) }
    }
}

/// The paths that a VPS has sent so far. It is not trusted to send each path once, and each below a
/// directory sent before: a directory sent after a symlink of the same path would be written
/// through that symlink.
#[derive(Debug, Default)]
pub struct Named {
    directories: HashSet<PathBuf>,
    links: HashSet<PathBuf>,
}

impl Named {
    /// # Errors
    /// Returns the text of the error for a duplicate path, or one without its directory.
    pub fn add(&mut self, item: &Item) -> Result<(), String> {
        let way = &item.way;
        let known = |set: &HashSet<PathBuf>, way: &Path| set.contains(way);
        if known(&self.directories, way) || known(&self.links, way) {
            return Err(format!("{} was sent twice", way.display()));
        }
        if way.parent().is_some_and(|parent| !known(&self.directories, parent)) {
            return Err(format!("{} was sent before its directory", way.display()));
        }
        match item.what {
            What::Directory => self.directories.insert(way.clone()),
            What::Link { .. } => self.links.insert(way.clone()),
            What::File { .. } => true,
        };
        Ok(())
    }
}

/// Decides for a file by the state of its target.
pub fn choose(
    size: u64,
    mtime: Time,
    there: Option<(u64, Time)>,
    partial: Option<Partial>,
) -> Choice {
    if there.is_some_and(|(has, time)| has == size && same(time, mtime)) {
        return Choice::Skip;
    }
    match partial {
        Some(partial) if partial.size <= size && partial.mtime == mtime => {
            Choice::Copy { offset: partial.size }
        }
        Some(_) | None => Choice::Copy { offset: 0 },
    }
}

/// Compares times; a file system with a resolution of one second drops the nanoseconds.
fn same(one: Time, other: Time) -> bool {
    one.0 == other.0 && (one.1 == other.1 || one.1 == 0 || other.1 == 0)
}

/// Returns whether the path is the partial file of a copy in progress, which is not copied.
pub fn is_partial(way: &Path) -> bool {
    let name = way.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    name.starts_with(b".") && name.ends_with(b".kr-part")
}

pub fn path(word: Word) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind) -> Entry {
        let name = Word::from(name);
        let (mtime, target) = (Time(1, 2), None);
        Entry { name, kind, size: 1, mode: 0o644, uid: 0, gid: 0, mtime, target, owner: None }
    }

    #[test]
    fn vps_cannot_send_paths_outside_the_copy() {
        for bad in ["../x", "/etc/passwd", "a/../../x", "./x"] {
            assert!(Item::of(entry(bad, Kind::File)).is_err(), "{bad}");
        }
        assert!(Item::of(entry("a/b", Kind::File)).is_ok());
        assert!(Item::of(entry("", Kind::Directory)).is_ok());
        assert!(Item::of(entry("a", Kind::Other)).is_err());
    }

    #[test]
    fn vps_cannot_send_a_symlink_and_a_path_below_it() {
        let of = |name: &str, kind| {
            let target = (kind == Kind::Symlink).then(|| Word::from("/etc"));
            Item::of(Entry { target, ..entry(name, kind) }).unwrap()
        };
        let mut named = Named::default();
        for (name, kind) in [
            ("", Kind::Directory),
            ("d", Kind::Directory),
            ("d/f", Kind::File),
            ("l", Kind::Symlink),
        ] {
            assert_eq!(named.add(&of(name, kind)), Ok(()), "{name}");
        }
        for (name, kind) in [
            ("l", Kind::Directory),
            ("l", Kind::File),
            ("l/passwd", Kind::File),
            ("d", Kind::Symlink),
            ("x/f", Kind::File),
        ] {
            assert!(named.add(&of(name, kind)).is_err(), "{name}");
        }
        assert!(Named::default().add(&of("f", Kind::File)).is_err(), "without its root");
    }

    #[test]
    fn present_file_is_skipped_and_partial_one_resumed() {
        let time = Time(5, 6);
        let partial = |size, mtime| Some(Partial { size, mtime });
        let offset = |there, partial| match choose(10, time, there, partial) {
            Choice::Skip => None,
            Choice::Copy { offset } => Some(offset),
        };
        assert_eq!(offset(Some((10, time)), None), None);
        assert_eq!(offset(Some((10, Time(5, 0))), None), None);
        assert_eq!(offset(Some((10, Time(5, 7))), None), Some(0));
        assert_eq!(offset(Some((9, time)), partial(4, time)), Some(4));
        assert_eq!(offset(None, partial(4, Time(5, 7))), Some(0));
        assert_eq!(offset(None, partial(11, time)), Some(0));
    }

    #[test]
    fn partial_files_are_recognized_by_name() {
        assert!(is_partial(Path::new("a/.b.kr-part")) && is_partial(Path::new(".kr-part")));
        assert!(!is_partial(Path::new("a/b")) && !is_partial(Path::new("b.kr-part")));
    }
}

//! The command line's notation for a source or target.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::CommandError;
use crate::reference::VpsRef;

/// The base of relative paths in a VPS: the agent runs as root.
const HOME: &str = "/root";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Local(PathBuf),
    /// The path is absolute; a slash at its end is kept.
    Remote {
        vps: VpsRef,
        path: PathBuf,
    },
    Stdio,
}

impl Destination {
    pub fn parse(text: &OsStr) -> Result<Self, CommandError> {
        let bytes = text.as_bytes();
        match bytes {
            b"" => return Err(CommandError::usage("a path is empty")),
            b"-" => return Ok(Self::Stdio),
            _ => {}
        }
        let end = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        let Some(colon) = end.filter(|at| bytes[*at] == b':') else {
            return Ok(Self::Local(PathBuf::from(text)));
        };
        let (name, path) = (&text.to_string_lossy()[..], OsStr::from_bytes(&bytes[colon + 1..]));
        let name = name.split(':').next().unwrap_or_default();
        let vps = name.parse::<VpsRef>().map_err(|_| {
            CommandError::usage(format!("'{name}' before the colon is not a VPS"))
                .hint("write a local name that contains a colon as ./a:b")
        })?;
        Ok(Self::Remote { vps, path: absolute(path) })
    }

    /// Returns the destination in the command line's notation.
    pub fn shown(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::Remote { vps, path } => format!("{vps}:{}", path.display()),
            Self::Stdio => "-".to_owned(),
        }
    }
}

fn absolute(path: &OsStr) -> PathBuf {
    match path.as_bytes() {
        [b'/', ..] => PathBuf::from(path),
        b"" | b"~" => PathBuf::from(HOME),
        [b'~', b'/', rest @ ..] => under_home(OsStr::from_bytes(rest)),
        _ => under_home(path),
    }
}

fn under_home(path: &OsStr) -> PathBuf {
    let mut whole = OsString::from(HOME);
    whole.push("/");
    whole.push(path);
    PathBuf::from(whole)
}

/// Returns whether the path can only name a directory.
pub fn says_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    matches!(bytes, [.., b'/'] | b"." | b".." | [.., b'/', b'.'] | [.., b'/', b'.', b'.'])
}

/// Returns the name of a copy of `path` in a directory; `None` for `SOURCE/.`, the content alone.
pub fn name_of(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    // `file_name` ignores a dot at the end.
    if matches!(bytes, b"." | [.., b'/', b'.']) { None } else { path.file_name() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(path: &str) -> Destination {
        Destination::Remote { vps: "web".parse().unwrap(), path: path.into() }
    }

    #[test]
    fn colon_before_any_slash_means_a_vps() {
        let parse = |text: &str| Destination::parse(text.as_ref()).unwrap();
        assert_eq!(parse("web:/srv/"), remote("/srv/"));
        assert_eq!(parse("web:"), remote("/root"));
        assert_eq!(parse("web:~"), remote("/root"));
        assert_eq!(parse("web:~/a:b"), remote("/root/a:b"));
        assert_eq!(parse("web:a"), remote("/root/a"));
        assert_eq!(parse("./a:b"), Destination::Local("./a:b".into()));
        assert_eq!(parse("/a:b"), Destination::Local("/a:b".into()));
        assert_eq!(parse("-"), Destination::Stdio);
        assert!(Destination::parse("no such:x".as_ref()).is_err());
        assert!(Destination::parse("".as_ref()).is_err());
        let odd = OsStr::from_bytes(b"web:/a\xff");
        let Destination::Remote { path, .. } = Destination::parse(odd).unwrap() else { panic!() };
        assert_eq!(path.as_os_str().as_bytes(), b"/a\xff");
    }

    #[test]
    fn trailing_dot_means_the_content() {
        assert_eq!(name_of(Path::new("a/b/")), Some(OsStr::new("b")));
        assert_eq!(name_of(Path::new("a/.")), None);
        assert_eq!(name_of(Path::new(".")), None);
        assert_eq!(name_of(Path::new("/")), None);
    }
}

//! Lexical checks of the paths in requests. The agent checks the real path again once the file
//! is open.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Code, Failed};

/// The kernel's bounds.
pub const MAX_PATH: usize = 4095;
pub const MAX_NAME: usize = 255;
/// Programs and devices pretending to be files: reading or writing them does things.
const FORBIDDEN: [&str; 3] = ["/proc", "/sys", "/dev"];
const PARTIAL_END: &str = ".kr-part";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path must be absolute: begin it with /")]
    Relative,
    #[error("a path may have at most {MAX_PATH} bytes")]
    TooLong,
    #[error("a name in a path may have at most {MAX_NAME} bytes")]
    NameTooLong,
    #[error("a path cannot hold a zero byte")]
    Zero,
    #[error("/proc, /sys and /dev are not files to copy or change")]
    Forbidden,
}

impl From<PathError> for Failed {
    fn from(error: PathError) -> Self {
        let code = match error {
            PathError::Forbidden => Code::Forbidden,
            PathError::Relative | PathError::TooLong | PathError::NameTooLong | PathError::Zero => {
                Code::Invalid
            }
        };
        Self { code, message: error.to_string() }
    }
}

/// The path without `.`, `..` and double slashes, as text has it and not the disk.
///
/// # Errors
/// It is not absolute, too long, or leads where no files are.
pub fn normalise(path: &OsStr) -> Result<PathBuf, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::Relative);
    }
    if bytes.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    if bytes.contains(&0) {
        return Err(PathError::Zero);
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in bytes.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name if name.len() > MAX_NAME => return Err(PathError::NameTooLong),
            name => names.push(name),
        }
    }
    let mut normal = vec![b'/'];
    normal.extend(names.join(&b'/'));
    let normal = PathBuf::from(OsString::from_vec(normal));
    if is_forbidden(&normal) { Err(PathError::Forbidden) } else { Ok(normal) }
}

/// Whether a real path is in one of the places where no files are.
pub fn is_forbidden(real: &Path) -> bool {
    FORBIDDEN.iter().any(|place| real.starts_with(place))
}

/// Like [`is_forbidden`], as a result.
///
/// # Errors
/// It is.
pub fn check_real(real: &Path) -> Result<(), PathError> {
    if is_forbidden(real) { Err(PathError::Forbidden) } else { Ok(()) }
}

/// Returns the name of a partial file: `.name.kr-part`. A name too long for that is shortened and
/// made unique by its hash.
pub fn partial_name(name: &OsStr) -> OsString {
    let room = MAX_NAME - PARTIAL_END.len() - 1;
    let mut partial = OsString::from(".");
    if name.len() <= room {
        partial.push(name);
    } else {
        let mut hasher = DefaultHasher::new();
        name.as_bytes().hash(&mut hasher);
        partial.push(OsStr::from_bytes(&name.as_bytes()[..room - 17]));
        partial.push(format!("~{:016x}", hasher.finish()));
    }
    partial.push(PARTIAL_END);
    partial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> Result<String, PathError> {
        normalise(path.as_ref()).map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn dots_and_slashes_are_taken_out_and_nothing_leads_above_the_root() {
        assert_eq!(normal("/a//b/./c/../d/"), Ok("/a/b/d".to_owned()));
        assert_eq!(normal("/../../etc"), Ok("/etc".to_owned()));
        assert_eq!(normal("/"), Ok("/".to_owned()));
        assert_eq!(normal("etc"), Err(PathError::Relative));
        assert_eq!(normal(""), Err(PathError::Relative));
        assert_eq!(normal("/a\0b"), Err(PathError::Zero));
    }

    #[test]
    fn places_without_files_are_refused_by_every_spelling() {
        for bad in ["/proc", "/proc/", "/proc/1/root", "/a/../sys/x", "//dev/./sda", "/../proc"] {
            assert_eq!(normal(bad), Err(PathError::Forbidden), "{bad}");
        }
        assert_eq!(normal("/processes"), Ok("/processes".to_owned()));
        assert_eq!(normal("/home/proc"), Ok("/home/proc".to_owned()));
    }

    #[test]
    fn a_partial_name_always_fits_and_differs_for_names_that_begin_alike() {
        assert_eq!(partial_name("a".as_ref()), ".a.kr-part");
        let long = |last: &str| OsString::from(format!("{}{last}", "x".repeat(250)));
        assert!(partial_name(&long("1")).len() <= MAX_NAME);
        assert_ne!(partial_name(&long("1")), partial_name(&long("2")));
    }
}

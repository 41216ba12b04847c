//! Which of a client's locale variables make sense here: those of locales that the image has.
//!
//! A program that is told of a locale it cannot find falls back to ASCII, and shows `caf\303\251`
//! where C.UTF-8 would have done.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The locale where neither image nor client names one. It needs no files.
pub(crate) const DEFAULT: &str = "C.UTF-8";
const BUILT_IN: [&str; 4] = ["C", "POSIX", "C.UTF-8", "C.utf8"];
const FOLDER: &str = "/usr/lib/locale";
const ARCHIVE: &str = "locale-archive";
const ARCHIVE_MAGIC: u32 = 0xde02_0109;
/// All locales that glibc has take half of it.
const MOST_NAMES: u64 = 64 * 1024;
const MOST_VARIABLES: usize = 32;

/// The variables to give a program.
pub(crate) fn known(variables: Vec<(String, String)>) -> Vec<(String, String)> {
    let folder = Path::new(FOLDER);
    let usable = |(name, value): &(String, String)| {
        (name == "LANG" || name.starts_with("LC_")) && has(folder, value)
    };
    variables.into_iter().take(MOST_VARIABLES).filter(usable).collect()
}

fn has(folder: &Path, locale: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@');
    let plain = locale.split('.').all(|part| !part.is_empty() && part.chars().all(is_name));
    if !plain || BUILT_IN.contains(&locale) {
        return plain;
    }
    let name = normal(locale);
    folder.join(locale).is_dir()
        || folder.join(&name).is_dir()
        || archived(&folder.join(ARCHIVE)).is_some_and(|names| {
            names.split(|byte| *byte == 0).any(|archived| archived == name.as_bytes())
        })
}

/// The name as glibc stores it: `de_DE.UTF-8` is `de_DE.utf8`.
fn normal(locale: &str) -> String {
    let Some((language, rest)) = locale.split_once('.') else { return locale.to_owned() };
    let (codeset, modifier) = rest.find('@').map_or((rest, ""), |at| rest.split_at(at));
    let codeset = codeset.chars().filter(char::is_ascii_alphanumeric);
    format!("{language}.{}{modifier}", codeset.collect::<String>().to_ascii_lowercase())
}

/// The names in glibc's archive, each with a zero behind it.
fn archived(path: &Path) -> Option<Vec<u8>> {
    let mut file: File = OpenOptions::new()
        .read(true)
        // A pipe in its place must not hold up the agent.
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut header = [0; 28];
    file.read_exact(&mut header).ok()?;
    let number = |index: usize| {
        let bytes = header.get(index * 4..index * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    if number(0)? != ARCHIVE_MAGIC {
        return None;
    }
    let (offset, length) = (number(5)?, number(6)?);
    file.seek(SeekFrom::Start(offset.into())).ok()?;
    let mut names = Vec::new();
    file.take(u64::from(length).min(MOST_NAMES)).read_to_end(&mut names).ok()?;
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locale_is_known_by_its_folder_or_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("fr_FR.utf8")).unwrap();
        let mut archive: Vec<u8> =
            [ARCHIVE_MAGIC, 0, 0, 0, 0, 32, 22, 22].iter().flat_map(|n| n.to_ne_bytes()).collect();
        archive.extend(b"de_DE.utf8\0de_DE@euro\0");
        std::fs::write(folder.path().join(ARCHIVE), archive).unwrap();
        for locale in ["C", "C.UTF-8", "fr_FR.UTF-8", "de_DE.UTF-8", "de_DE@euro"] {
            assert!(has(folder.path(), locale), "{locale}");
        }
        for locale in ["", "en_US.UTF-8", "de_DE", "../..", "fr_FR.utf8/", "."] {
            assert!(!has(folder.path(), locale), "{locale}");
        }
    }

    #[test]
    fn archive_that_is_damaged_knows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for damaged in [&b""[..], &[0; 64], &[0xff; 64]] {
            std::fs::write(folder.path().join(ARCHIVE), damaged).unwrap();
            assert!(!has(folder.path(), "de_DE.UTF-8"));
        }
    }
}

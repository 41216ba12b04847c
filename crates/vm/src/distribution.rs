//! This machine's own distribution: which release it is, where its packages come from, and a
//! system made of them.

mod apt_sources;
pub mod bootstrap;

use std::fs;
use std::path::{Path, PathBuf};

pub use apt_sources::own_sources;

/// A release of Debian, or of something made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub codename: String,
    pub ubuntu: bool,
}

/// What this machine runs; None where it is no Debian.
pub fn this_machine() -> Option<Release> {
    release_of(&fs::read_to_string("/etc/os-release").ok()?)
}

/// Where `program` is, looked for also where the system's own programs are: an ordinary user's
/// PATH leaves those out.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut dirs = std::env::split_paths(&path).chain(system);
    dirs.find_map(|dir| Some(dir.join(program)).filter(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn release_of(os_release: &str) -> Option<Release> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    let ids: Vec<String> = [value("ID"), value("ID_LIKE")]
        .into_iter()
        .flatten()
        .flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let is = |wanted: &str| ids.iter().any(|id| id == wanted);
    let codename = value("VERSION_CODENAME").filter(|name| !name.is_empty())?;
    (is("debian") || is("ubuntu")).then(|| Release { codename, ubuntu: is("ubuntu") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_machines_own_where_it_is_a_debian() {
        let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let bookworm = Release { codename: "bookworm".to_owned(), ubuntu: false };
        assert_eq!(release_of(debian), Some(bookworm));
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\n";
        let wilma = Release { codename: "wilma".to_owned(), ubuntu: true };
        assert_eq!(release_of(mint), Some(wilma));
        assert_eq!(release_of("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
    }

    #[test]
    fn programs_of_the_system_are_found_whatever_the_path() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}

//! Sockets in the file system, opened with a user's rights and no others.
//!
//! The socket is made here, and connected or bound in a forked child that has become the user and then ends: both share
//! it. The kernel checks the child's rights, and shows the child's user to the peer. A thread with
//! other credentials would do too, but the user could signal it, and it is part of this process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};
use tokio::net::{UnixListener, UnixStream};

use super::Children;
use super::spawn::{Identity, preparation};
use crate::sys;

const BACKLOG: i32 = 128;

/// Connects to a socket.
pub(crate) fn connect_as(
    children: &Children,
    identity: Identity,
    path: &Path,
) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let made = new_socket()?;
    let number = made.as_raw_fd();
    in_child(children, identity, move || Ok(connect(number, &address)?))?;
    UnixStream::from_std(std::os::unix::net::UnixStream::from(made))
}

/// Listens on a socket that only the user can connect to, in a new private directory if one is named.
pub(crate) fn listen_as(
    children: &Children,
    identity: Identity,
    directory: Option<&Path>,
    path: &Path,
) -> io::Result<UnixListener> {
    let address = UnixAddr::new(path)?;
    let directory = directory.map(c_path).transpose()?;
    let backlog = Backlog::new(BACKLOG)?;
    let made = new_socket()?;
    let number = made.as_raw_fd();
    let shared = made.try_clone()?;
    in_child(children, identity, move || {
        if let Some(directory) = &directory {
            mkdir(directory.as_c_str(), Mode::S_IRWXU)?;
        }
        umask(Mode::from_bits_truncate(0o177));
        bind(number, &address)?;
        Ok(listen(&shared, backlog)?)
    })?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(made))
}

/// Removes what [`listen_as`] made.
pub(crate) fn remove_as(
    children: &Children,
    identity: Identity,
    directory: Option<&Path>,
    path: &Path,
) -> io::Result<()> {
    let path = c_path(path)?;
    let directory = directory.map(c_path).transpose()?;
    in_child(children, identity, move || {
        unlinkat(nix::fcntl::AT_FDCWD, path.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        if let Some(directory) = &directory {
            unlinkat(nix::fcntl::AT_FDCWD, directory.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
        Ok(())
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Does something as the user. The act must not allocate or lock: see [`sys::before_exec`].
fn in_child<F>(children: &Children, identity: Identity, mut act: F) -> io::Result<()>
where
    F: FnMut() -> io::Result<()> + Send + Sync + 'static,
{
    let mut become_user = preparation(identity, Path::new("/"), false)?;
    // The program is never reached.
    let mut command = Command::new("/");
    sys::before_exec(&mut command, move || {
        become_user()?;
        act()?;
        sys::end_child()
    });
    children.spawn(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

    use super::*;
    use crate::process::ReapMode;

    const NOBODY: u32 = 65534;

    fn nobody() -> Identity {
        Identity { uid: NOBODY, gid: NOBODY, groups: vec![] }
    }

    fn directory(mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_connection_has_the_users_rights_and_its_name() {
        let children = Children::new(ReapMode::Registered);
        let dir = directory(0o755);
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refused = connect_as(&children, nobody(), &path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let stream = connect_as(&children, nobody(), &path).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        assert_eq!(getsockopt(&accepted, PeerCredentials).unwrap().uid(), NOBODY);
        accepted.write_all(b"x").unwrap();
        let mut stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }

    #[tokio::test]
    async fn a_listener_belongs_to_the_user_and_leaves_nothing_when_it_is_removed() {
        let children = Children::new(ReapMode::Registered);
        let dir = directory(0o1777);
        let inner = dir.path().join("inner");
        let path = inner.join("socket");
        let listener = listen_as(&children, nobody(), Some(&inner), &path).unwrap();
        let (outside, socket) =
            (std::fs::metadata(&inner).unwrap(), std::fs::metadata(&path).unwrap());
        assert_eq!((outside.uid(), outside.mode() & 0o777), (NOBODY, 0o700));
        assert_eq!((socket.uid(), socket.mode() & 0o777), (NOBODY, 0o600));
        let (_client, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        accepted.unwrap();
        let again = listen_as(&children, nobody(), None, &path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        remove_as(&children, nobody(), Some(&inner), &path).unwrap();
        assert!(!inner.exists());
    }

    #[tokio::test]
    async fn a_user_listens_only_where_it_may_write() {
        let children = Children::new(ReapMode::Registered);
        let dir = directory(0o755);
        let path = dir.path().join("socket");
        let refused = listen_as(&children, nobody(), None, &path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}

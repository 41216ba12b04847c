//! Handing a TAP to QEMU.
//!
//! QEMU runs as a user of its own, which may not be allowed to open `/dev/net/tun`, and must not
//! be able to open another machine's TAP. So whoever becomes QEMU opens it while it is still root,
//! at a number that QEMU is told.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::names::is_plain_device;

/// Where QEMU finds its TAP; above what a process has from its start.
pub const TAP_FD: i32 = 10;

/// Opens the TAP for the program that this process is about to become. Whatever an ancestor left
/// open at that number is closed.
///
/// # Errors
/// There is no such TAP, or it is not ours to open.
pub fn inherit_tap(name: &str) -> io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    bind(&device, name)?;
    keep_at(device, TAP_FD)
}

/// Leaves the descriptor open over exec, at that number.
#[expect(unsafe_code, reason = "a descriptor at a number that somebody else may own")]
fn keep_at(device: File, number: i32) -> io::Result<()> {
    if device.as_raw_fd() == number {
        fcntl(&device, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let _ = device.into_raw_fd();
        return Ok(());
    }
    // SAFETY: both are numbers; the caller is about to become another program, and owns nothing
    // at that number until then.
    if unsafe { libc::dup2(device.as_raw_fd(), number) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn bind(device: &File, name: &str) -> io::Result<()> {
    if !is_plain_device(name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the structure is plain data, for which zero is a value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // With the header in which QEMU and the kernel leave checksums and segments to each other.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: the request is whole and lives for the length of the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

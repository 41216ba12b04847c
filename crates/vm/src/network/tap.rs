//! Handing a TAP to QEMU.
//!
//! QEMU runs as a user of its own, which may not be allowed to open `/dev/net/tun`, and must not
//! be able to open another machine's TAP. So whoever becomes QEMU opens it while it is still root,
//! at a number that QEMU is told.
//!
//! A descriptor outlives its device: where somebody removed that, the kernel lets the same descriptor
//! be bound to the next one. So a running QEMU gets its network back without being asked.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::names::is_plain_device;
use crate::launch::Process;

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

/// A running QEMU's end of its TAP.
#[derive(Debug)]
pub(super) struct QemuEnd(OwnedFd);

impl QemuEnd {
    /// # Errors
    /// The process is gone, or is nobody's that we may look into.
    pub fn of(process: Process) -> io::Result<Self> {
        let qemu = pidfd_open(process.pid)?;
        // From here on the number is this process's, or the process is gone.
        if !process.is_alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self(pidfd_getfd(&qemu, TAP_FD)?))
    }

    /// It leads to a device that is there.
    #[expect(unsafe_code, reason = "TUNGETIFF has no safe wrapper")]
    pub fn is_bound(&self) -> bool {
        // SAFETY: the structure is plain data, for which zero is a value of every field.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the request is whole and lives for the length of the call.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) == 0 }
    }

    /// Binds it to another device.
    ///
    /// # Errors
    /// There is no such TAP, or it is bound already.
    #[expect(unsafe_code, reason = "TUNSETVNETHDRSZ has no safe wrapper")]
    pub fn bind(&self, name: &str) -> io::Result<()> {
        bind(&self.0, name)?;
        // What QEMU agreed on with the old device, as far as it must be the same: the header that
        // virtio 1 has. That it would take segments as large as its own is not known any more, so
        // until its next start it gets packets of ordinary size.
        let header: libc::c_int = 12;
        // SAFETY: the number lives for the length of the call.
        let done =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[expect(unsafe_code, reason = "nix has no pidfd_open")]
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

#[expect(unsafe_code, reason = "nix has no pidfd_getfd")]
fn pidfd_getfd(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: three numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

#[expect(unsafe_code, reason = "a descriptor that the kernel just gave")]
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: it is open, and nobody else knows of it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
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
fn bind(device: &impl AsFd, name: &str) -> io::Result<()> {
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
    if unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw const request) } == -1
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

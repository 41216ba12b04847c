//! Whether the other end is still there, decided from times alone.

use std::time::Duration;

/// A runner beats this often; the host answers each beat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Three beats missed: the connection is dead, whatever the kernel thinks.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// A peer that connects must finish its part of the handshake within this.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

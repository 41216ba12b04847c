//! How many channels a connection has, and what they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use russh::ChannelId;
use russh::server::Handle;

use super::window::{Budget, Window};

/// Editors open tens of forwards over one connection.
const MAX_CHANNELS: usize = 256;

/// The connection's channels.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    taken: Arc<AtomicUsize>,
    budget: Arc<Budget>,
}

impl Slots {
    /// Takes one, if the connection may have another channel.
    pub fn take(&self) -> Option<ChannelSlot> {
        let more = |taken| (taken < MAX_CHANNELS).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(ChannelSlot(self.clone()))
    }
}

/// A slot of the connection's channel limit, held while the channel lives.
#[derive(Debug)]
pub(super) struct ChannelSlot(Slots);

impl ChannelSlot {
    pub fn window(&self, channel: ChannelId, handle: Handle) -> Window {
        Window::new(channel, handle, Arc::clone(&self.0.budget))
    }
}

impl Drop for ChannelSlot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_so_many_channels_and_no_more() {
        let slots = Slots::default();
        let mut taken: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken.len(), MAX_CHANNELS);
        taken.pop();
        assert!(slots.take().is_some());
    }
}

use std::collections::VecDeque;

/// The last of a stream of bytes, each with its position from the stream's beginning.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    most: usize,
    end: u64,
}

impl Ring {
    pub fn new(most: usize) -> Self {
        Self { bytes: VecDeque::new(), most, end: 0 }
    }

    pub fn push(&mut self, data: &[u8]) {
        let kept = data.get(data.len().saturating_sub(self.most)..).unwrap_or_default();
        let surplus = (self.bytes.len() + kept.len()).saturating_sub(self.most);
        self.bytes.drain(..surplus);
        self.bytes.extend(kept);
        self.end += data.len() as u64;
    }

    /// The position of the next byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// At most `most` bytes from `position` on, or `None` where they are no longer, or not yet,
    /// here.
    pub fn read(&self, position: u64, most: usize) -> Option<Vec<u8>> {
        let start = self.end - self.bytes.len() as u64;
        let skip = usize::try_from(position.checked_sub(start)?).ok()?;
        let left = self.bytes.len().checked_sub(skip)?;
        Some(self.bytes.range(skip..skip + left.min(most)).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_there(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            position in 0..500u64,
        ) {
            let mut ring = Ring::new(64);
            let all: Vec<u8> = pieces.concat();
            pieces.iter().for_each(|piece| ring.push(piece));
            prop_assert_eq!(ring.end(), all.len() as u64);
            match ring.read(position, 10) {
                Some(read) => {
                    let from = usize::try_from(position).unwrap();
                    prop_assert_eq!(&read[..], &all[from..all.len().min(from + 10)]);
                }
                None => prop_assert!(position > ring.end() || ring.end() - position > 64),
            }
        }
    }
}

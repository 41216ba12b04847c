//! Runs every known input, and thousands of mutations, through every parser.

#![allow(clippy::unwrap_used, reason = "what cannot be read has failed")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kohakuriver_fuzz::{TARGETS, seeds};

const MUTATIONS: u32 = 20_000;
/// The time limit of one input; the slowest takes a few milliseconds unoptimized.
const SLOW: Duration = Duration::from_secs(5);

/// The same mutations in every run, so that a failure is reproducible.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides.max(1) as u64).unwrap()
    }
}

fn mutated(input: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len() + 1);
        match dice.roll(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, u8::try_from(dice.roll(256)).unwrap()),
            2 => bytes.splice(at..at, other.iter().copied().take(64)).for_each(drop),
            3 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            // Lengths that are wrong.
            4 if at + 4 <= bytes.len() => {
                let lies = [0, 1, 0x7fff_ffff, 0xffff_ffff, 0x0010_0000, 0x0010_0001];
                bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(lies[dice.roll(6)]));
            }
            5 if at < bytes.len() => bytes[at] = [0, 255, b'{', b'"', 0x1b, b'\n'][dice.roll(6)],
            _ => bytes.extend_from_slice(&input[..input.len().min(64)]),
        }
    }
    bytes
}

fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    let began = Instant::now();
    let result = std::panic::catch_unwind(|| target(input));
    assert!(result.is_ok(), "{name} panics on {input:?}");
    assert!(began.elapsed() < SLOW, "{name} hangs on {input:?}");
}

#[test]
fn inputs_and_mutations_neither_panic_nor_hang() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for (name, target) in TARGETS {
        let mut inputs = seeds(name);
        assert!(!inputs.is_empty(), "{name} has no seed");
        if let Ok(entries) = fs::read_dir(corpus.join(name)) {
            inputs.extend(entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()));
        }
        inputs.iter().for_each(|input| run(name, target, input));
        for _ in 0..MUTATIONS {
            let (one, other) = (dice.roll(inputs.len()), dice.roll(inputs.len()));
            run(name, target, &mutated(&inputs[one], &inputs[other], &mut dice));
        }
    }
}

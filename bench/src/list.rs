//! `vps list`, end to end, in a cluster with a hundred VPSes.

use kohakuriver_e2e::Site;

use crate::memory::many;
use crate::sample::{Line, timed};

const ROUNDS: usize = 30;
const VPSES: usize = 100;

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let _server = site.up();
    many(&site, VPSES);
    let samples: Vec<_> = (0..ROUNDS)
        .map(|_| {
            timed(|| {
                site.kr(&["vps", "list"]).ok();
            })
        })
        .collect();
    vec![Line::millis(format!("vps list with {VPSES} VPSes"), &samples)]
}

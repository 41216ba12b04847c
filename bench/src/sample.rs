//! Samples, their median and spread, and the line that prints them.

use std::fmt;
use std::time::{Duration, Instant};

/// A row of the result: name, unit, and spread.
#[derive(Debug)]
pub struct Line {
    what: String,
    unit: &'static str,
    samples: Vec<f64>,
    /// The reference measurement, and the ratio of the medians.
    against: Option<(String, f64)>,
}

impl Line {
    pub fn new(what: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "something was measured");
        samples.sort_by(f64::total_cmp);
        Self { what: what.into(), unit, samples, against: None }
    }

    pub fn millis(what: impl Into<String>, samples: &[Duration]) -> Self {
        Self::new(what, "ms", samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect())
    }

    #[must_use]
    pub fn against(mut self, other: &Self) -> Self {
        self.against = Some((other.what.clone(), self.median() / other.median()));
        self
    }

    pub fn median(&self) -> f64 {
        let middle = self.samples.len() / 2;
        if self.samples.len() % 2 == 1 {
            self.samples[middle]
        } else {
            f64::midpoint(self.samples[middle - 1], self.samples[middle])
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.samples[0], self.samples[self.samples.len() - 1]);
        write!(
            f,
            "{:<52} {:>9.1} {:<5} ({first:.1} to {last:.1}, n={})",
            self.what,
            self.median(),
            self.unit,
            self.samples.len()
        )?;
        match &self.against {
            Some((other, ratio)) => write!(f, "  {ratio:.2} x {other}"),
            None => Ok(()),
        }
    }
}

/// Measures the duration of `work`.
pub fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

//! Progress people can read, not more of it than they can.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::CreateImageInfo;

/// How far a pull is, over all layers; never backwards.
#[derive(Debug, Default)]
pub struct Layers {
    parts: HashMap<String, f64>,
    best: u8,
}

impl Layers {
    pub fn hear(&mut self, message: &CreateImageInfo) -> Option<u8> {
        let id = message.id.clone()?;
        let detail = message.progress_detail.as_ref();
        let part = detail.and_then(|detail| {
            let total = detail.total.filter(|total| *total > 0)?;
            Some((detail.current? as f64 / total as f64).clamp(0.0, 1.0))
        });
        // Downloading weighs more than unpacking on every network slower than the disk.
        let part = match message.status.as_deref()? {
            "Downloading" => 0.7 * part.unwrap_or(0.0),
            "Verifying Checksum" | "Download complete" => 0.7,
            "Extracting" => 0.7 + 0.3 * part.unwrap_or(0.0),
            "Pull complete" | "Already exists" => 1.0,
            "Pulling fs layer" | "Waiting" => 0.0,
            _ => return None,
        };
        self.parts.insert(id, part);
        let sum: f64 = self.parts.values().sum();
        let percent = (sum / self.parts.len() as f64 * 100.0) as u8;
        self.best = self.best.max(percent.min(99));
        Some(self.best)
    }
}

/// Four reports a second are plenty for people and cheap for the link.
#[derive(Debug, Default)]
pub struct Throttle(Option<tokio::time::Instant>);

impl Throttle {
    pub fn due(&mut self) -> bool {
        let now = tokio::time::Instant::now();
        let due = self.0.is_none_or(|last| now - last >= Duration::from_millis(250));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn said(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn a_pull_only_goes_forward() {
        let mut layers = Layers::default();
        assert_eq!(layers.hear(&said("12", "Pulling from library/debian", 0, 0)), None);
        assert_eq!(layers.hear(&said("a", "Downloading", 50, 100)), Some(35));
        assert_eq!(layers.hear(&said("b", "Pulling fs layer", 0, 0)), Some(35));
        assert_eq!(layers.hear(&said("a", "Pull complete", 0, 0)), Some(50));
        assert_eq!(layers.hear(&said("b", "Already exists", 0, 0)), Some(99));
    }
}

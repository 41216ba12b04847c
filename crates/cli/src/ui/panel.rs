//! Details of an object as aligned `key  value` lines.

use super::{Output, Tone, printable};

#[derive(Debug, Default)]
pub struct Panel {
    lines: Vec<(&'static str, Tone, String)>,
}

impl Panel {
    pub fn add(&mut self, key: &'static str, value: impl Into<String>) -> &mut Self {
        self.tinted(key, Tone::Plain, value)
    }

    pub fn tinted(&mut self, key: &'static str, tone: Tone, value: impl Into<String>) -> &mut Self {
        self.lines.push((key, tone, printable(&value.into())));
        self
    }

    /// Adds a line if there is a value.
    pub fn maybe(&mut self, key: &'static str, value: Option<impl Into<String>>) -> &mut Self {
        if let Some(value) = value {
            self.add(key, value);
        }
        self
    }

    pub fn render(&self, out: Output) -> Vec<String> {
        let width = self.lines.iter().map(|(key, ..)| key.len()).max().unwrap_or(0) + 2;
        let mut text = Vec::new();
        for (key, tone, value) in &self.lines {
            let key = format!("{:width$}", format!("{key}:"));
            for (index, line) in value.lines().enumerate() {
                let value = out.paint(*tone, line);
                text.push(match index {
                    0 => format!("{} {value}", out.paint(Tone::Quiet, &key)),
                    _ => format!("{:width$} {value}", ""),
                });
            }
        }
        text
    }

    pub fn print(&self, out: Output) {
        for line in self.render(out) {
            out.styled(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_in_one_column() {
        let mut panel = Panel::default();
        panel.add("id", "7\u{1b}[2J").add("started", "one\ntwo").maybe("gone", None::<String>);
        let out = Output { json: false, colour: false };
        assert_eq!(panel.render(out), ["id:       7 [2J", "started:  one", "          two"]);
    }
}

//! Entry points of the parsers of untrusted bytes, for fuzz targets alone.

use kohakuriver_agent_protocol::exec::Size;

/// Parses an SFTP packet: its kind, then its fields.
pub fn sftp_packet(bytes: &[u8]) {
    crate::sftp::parse(bytes);
}

/// Interprets output of a program in a terminal; the first two bytes are a size.
pub fn terminal_output(bytes: &[u8]) {
    if let [rows, cols, output @ ..] = bytes {
        crate::session::show(output, Size { rows: u16::from(*rows), cols: u16::from(*cols) });
    }
}

/// The words of a command for an image that has no shell.
pub fn command_words(bytes: &[u8]) {
    crate::ssh::words(bytes);
}

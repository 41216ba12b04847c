//! The attributes of a file in SFTP responses.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use super::names::Names;
use super::output::Body;

/// Half a year, before which a listing shows the year and not the time.
const RECENT: i64 = 365 * 24 * 60 * 60 / 2;
const DAY: i64 = 24 * 60 * 60;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Writes size, owner, permissions and times: everything version 3 knows.
pub(super) fn put(body: &mut Body<'_>, meta: &Metadata) {
    const ALL: u32 = 1 | 2 | 4 | 8;
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    body.u32(ALL).u64(meta.size()).u32(meta.uid()).u32(meta.gid()).u32(meta.mode());
    body.u32(seconds(meta.atime())).u32(seconds(meta.mtime()));
}

pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Writes the line of `ls -l` for a file, in place of what `line` held.
pub(super) fn listing(
    line: &mut Vec<u8>,
    name: &[u8],
    meta: &Metadata,
    names: &mut Names,
    now: i64,
) {
    line.clear();
    let user = match names.user(meta.uid()) {
        "" => meta.uid().to_string(),
        user => user.to_owned(),
    };
    let group = match names.group(meta.gid()) {
        "" => meta.gid().to_string(),
        group => group.to_owned(),
    };
    let _ = write!(
        line,
        "{} {:>4} {user:<8} {group:<8} {:>8} {} ",
        permissions(meta.mode()),
        meta.nlink(),
        meta.size(),
        date(meta.mtime(), now),
    );
    line.extend_from_slice(name);
}

fn permissions(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    format!("{kind}{}", kohakuriver_agent_protocol::files::permissions(mode))
}

/// The date as `ls` shows it, in UTC: the time zone's files are the image's, or nowhere.
fn date(time: i64, now: i64) -> String {
    let (year, month, day) = civil(time.div_euclid(DAY));
    let month = MONTHS[month];
    if (now - RECENT..=now + DAY).contains(&time) {
        let minutes = time.rem_euclid(DAY) / 60;
        format!("{month} {day:>2} {:02}:{:02}", minutes / 60, minutes % 60)
    } else {
        format!("{month} {day:>2}  {year}")
    }
}

/// Year, month from 0 and day of a number of days since 1970.
fn civil(days: i64) -> (i64, usize, i64) {
    // Years are counted from March, so that the leap day is the last of one.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = usize::try_from((from_march + 2) % 12).unwrap_or(0);
    (era * 400 + year + i64::from(month < 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(civil(0), (1970, 0, 1));
        assert_eq!(civil(-1), (1969, 11, 31));
        assert_eq!(civil(19_782), (2024, 1, 29));
        assert_eq!(civil(19_783), (2024, 2, 1));
        assert_eq!(date(1_709_210_096, 1_709_210_096 + DAY), "Feb 29 12:34");
        assert_eq!(date(951_782_400, 1_709_210_096), "Feb 29  2000");
    }

    #[test]
    fn permissions_are_shown_as_ls_does() {
        assert_eq!(permissions(0o100_644), "-rw-r--r--");
        assert_eq!(permissions(0o041_777), "drwxrwxrwt");
        assert_eq!(permissions(0o104_710), "-rws--x---");
        assert_eq!(permissions(0o102_600), "-rw---S---");
        assert_eq!(permissions(0o120_777), "lrwxrwxrwx");
    }
}

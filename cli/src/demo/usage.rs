//! What a process has used, from `/proc`.

use std::fs;

/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, 100 on every architecture that containers run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used so far. Empty where there is no `/proc`, and after its end.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Resident bytes now.
    pub rss_bytes: Option<u64>,
    /// Most resident bytes ever.
    pub rss_peak_bytes: Option<u64>,
    /// Processor time in user and system mode, all threads.
    pub cpu_seconds: Option<f64>,
}

/// What the process `pid` has used.
#[must_use]
pub fn of(pid: u32) -> Usage {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let status = read("status").unwrap_or_default();
    Usage {
        rss_bytes: kibibytes(&status, "VmRSS:"),
        rss_peak_bytes: kibibytes(&status, "VmHWM:"),
        cpu_seconds: read("stat").as_deref().and_then(cpu_seconds),
    }
}

fn kibibytes(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the program's name, which may hold blanks and parentheses; utime and stime are 14 and 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_odd_program_names() {
        let stat = "7 (a) b ( c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 1000 10";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(kibibytes(status, "VmHWM:"), Some(2 << 20));
        assert_eq!((kibibytes("", "VmRSS:"), cpu_seconds("")), (None, None));
    }

    #[test]
    fn a_process_that_is_not_there_has_used_nothing_known() {
        assert_eq!(of(u32::MAX), Usage::default());
    }
}

//! What the kernel says of the engine's own process.

/// Facts of the moment. What cannot be read is zero.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessFacts {
    /// Processor time of the process in seconds.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub open_fds: u64,
    pub threads: u64,
    /// When it began, in seconds since 1970.
    pub started: f64,
}

impl ProcessFacts {
    /// Reads the facts.
    pub fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let tick = rustix::param::clock_ticks_per_second();
        let mut facts = Self::of(&stat, &boot, tick, rustix::param::page_size() as u64);
        facts.open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        facts
    }

    /// Reads `/proc/<pid>/stat` and `/proc/stat`.
    fn of(stat: &str, boot: &str, tick: u64, page: u64) -> Self {
        // The second field is a name in brackets, which may hold anything.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok()).unwrap_or(0);
        let seconds = |ticks: u64| ticks as f64 / tick.max(1) as f64;
        Self {
            cpu_seconds: seconds(field(14) + field(15)),
            resident_bytes: field(24) * page,
            open_fds: 0,
            threads: field(20),
            started: boot as f64 + seconds(field(22)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 200 100 0 0 20 0 9 0 5000 1000 42 0";
        let facts = ProcessFacts::of(stat, "cpu 1\nbtime 1000\n", 100, 4096);
        assert_eq!((facts.cpu_seconds, facts.threads), (3.0, 9));
        assert_eq!((facts.resident_bytes, facts.started), (42 * 4096, 1050.0));
        assert_eq!(ProcessFacts::of("", "", 0, 0).threads, 0);
        assert!(ProcessFacts::read().resident_bytes > 0);
    }
}

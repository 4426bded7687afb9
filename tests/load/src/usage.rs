//! What a process has used, by /proc.

use std::fs;

use crate::Result;

/// Nanoseconds that the threads of a process have run.
pub fn cpu_nanoseconds(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&tasks).map_err(|error| format!("{tasks}: {error}"))?;
    // A thread may end meanwhile.
    let texts =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    let sum: u64 = texts.filter_map(|text| schedstat(&text)).sum();
    if sum == 0 {
        return Err(format!("{tasks}: this kernel keeps no schedstat").into());
    }
    Ok(sum)
}

/// KiB of a process that are in memory.
pub fn resident(pid: u32) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    Ok(vm_rss(&text).ok_or_else(|| format!("{file} has no VmRSS"))?)
}

fn schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn vm_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        assert_eq!(schedstat("125377 117397 2\n"), Some(125_377));
        assert_eq!(schedstat("\n"), None);
        assert_eq!(vm_rss("VmHWM:\t  1 kB\nVmRSS:\t    5120 kB\nRssAnon:\t 3 kB\n"), Some(5120));
        assert_eq!(vm_rss("Name:\tzombie\n"), None);
        let own = std::process::id();
        assert!(cpu_nanoseconds(own).unwrap() > 0 && resident(own).unwrap() > 0);
    }
}

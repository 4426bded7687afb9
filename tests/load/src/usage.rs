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
    Ok(memory(pid)?.resident)
}

/// KiB of a process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// In memory, files that are mapped included.
    pub resident: u64,
    /// In memory, and no part of a file.
    pub private: u64,
}

/// The memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let value = |key: &str| kib(&text, key).ok_or_else(|| format!("{file} has no {key}"));
    Ok(Memory { resident: value("VmRSS")?, private: value("RssAnon")? })
}

/// How many files and sockets a process has open.
pub fn open_files(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?.count() as u64)
}

fn schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        assert_eq!(schedstat("125377 117397 2\n"), Some(125_377));
        assert_eq!(schedstat("\n"), None);
        let status = "VmHWM:\t  1 kB\nVmRSS:\t    5120 kB\nRssAnon:\t 3 kB\n";
        assert_eq!((kib(status, "VmRSS"), kib(status, "RssAnon")), (Some(5120), Some(3)));
        assert_eq!(kib("Name:\tzombie\n", "VmRSS"), None);
        let own = std::process::id();
        assert!(cpu_nanoseconds(own).unwrap() > 0 && open_files(own).unwrap() > 2);
        let Memory { resident, private } = memory(own).unwrap();
        assert!(resident > private && private > 0);
    }
}

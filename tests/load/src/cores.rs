//! One core for who is measured, another one for who measures; and room for many sockets.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Result;

/// The cores to use, where there are two.
pub struct Cores {
    pair: Option<[usize; 2]>,
}

impl Cores {
    /// The first two cores that this process may use. With one only, nothing is pinned.
    pub fn find() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let pair = cores.next().zip(cores.next()).map(|(first, second)| [first, second]);
        Ok(Self { pair })
    }

    /// True where the generator has a core of its own, and may spin on it.
    pub fn are_two(&self) -> bool {
        self.pair.is_some()
    }

    /// Starts a process on the first core: it inherits where this thread runs. This thread goes on on the
    /// second.
    pub fn start<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        let Some([first, second]) = self.pair else { return Ok(start()) };
        pin(first)?;
        let started = start();
        pin(second)?;
        Ok(started)
    }
}

fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|error| format!("core {core} cannot be used: {error}"))?;
    Ok(())
}

/// How many files a process may have open at most; None: as many as it likes.
pub fn most_files() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Makes room for so many open files, in this process and in those that it starts.
pub fn open_files(needed: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = maximum.filter(|maximum| *maximum < needed) {
        let raise = format!("ulimit -Hn {needed}");
        return Err(format!("{needed} open files are needed, {maximum} are allowed; try: {raise}").into());
    }
    let wanted = Rlimit { current: maximum.or(Some(needed)), maximum };
    setrlimit(Resource::Nofile, wanted).map_err(|error| format!("{needed} open files: {error}"))?;
    Ok(())
}

//! Calls that go on while something is done to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use zephserver_testkit::TestServer;

/// Somebody who calls all the time, and never gets an error.
pub struct Caller {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Caller {
    /// Calls with this line of the control protocol; the answer is to be a number.
    pub fn of(server: &TestServer, line: &'static str) -> Self {
        let (stop, answers, socket) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), server.socket());
        let (is_over, count) = (stop.clone(), answers.clone());
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let answer = zephserver::client::ask(&socket, line).unwrap();
                assert!(answer.is_u64(), "{answer}");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, answers, thread }
    }

    /// Several of them.
    pub fn crew(server: &TestServer, line: &'static str, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::of(server, line)).collect()
    }

    /// Waits until it was answered a few times more.
    pub fn goes_on(&self, server: &mut TestServer) {
        let before = self.answers.load(Ordering::Relaxed);
        server.wait("the caller goes on", |_| {
            assert!(!self.thread.is_finished(), "the caller got an error");
            (self.answers.load(Ordering::Relaxed) > before + 3).then_some(())
        });
    }

    /// How often it was answered.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.answers.load(Ordering::Relaxed)
    }
}

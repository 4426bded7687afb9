//! The jobs of the reload thread, one after the other. While one waits for a service that starts, libraries
//! are opened all the same: the service that starts may be the one that asked for it.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Select, TryRecvError};

use crate::messages::{Command, Job, Ticket};

/// Jobs that were put off at most; then the others wait in their queue.
const LATER: usize = 256;

/// What is to be done.
pub struct Jobs {
    queue: Receiver<Job>,
    /// What came while another one waited.
    later: VecDeque<Job>,
}

impl Jobs {
    pub fn new(queue: Receiver<Job>) -> Self {
        Self { queue, later: VecDeque::new() }
    }

    /// The next job; None: no more will come.
    pub fn take(&mut self) -> Option<Job> {
        self.later.pop_front().or_else(|| self.queue.recv().ok())
    }

    /// Waits for an answer, and has libraries opened meanwhile. None: there is no answer.
    pub fn wait<T>(
        &mut self,
        answer: &Receiver<T>,
        open: impl Fn(&str, Box<(Command, Ticket)>),
    ) -> Option<T> {
        while self.later.len() < LATER {
            match answer.try_recv() {
                Ok(answer) => return Some(answer),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            match self.queue.try_recv() {
                Ok(Job::Open { library, waiting }) => open(&library, waiting),
                Ok(job) => self.later.push_back(job),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    let mut either = Select::new();
                    either.recv(answer);
                    either.recv(&self.queue);
                    either.ready();
                }
            }
        }
        answer.recv().ok()
    }
}

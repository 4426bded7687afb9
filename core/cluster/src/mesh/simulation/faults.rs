//! What goes wrong.

use std::collections::BTreeSet;

use rand::RngExt;

use super::super::link::Conn;
use super::connections::{Pipe, PipeId};
use super::world::{Event, World};

impl World {
    pub(super) fn fault(&mut self) {
        if !self.has_faults {
            return;
        }
        let machine = self.any();
        let long = self.dice.random_range(100..12_000);
        match self.dice.random_range(0..8) {
            0 => self.cut(machine),
            1 => {
                self.machines[machine].is_paused = true;
                self.after(long, Event::Resume(machine));
            }
            2 => {
                self.machines[machine].is_slow = true;
                self.after(long, Event::Wake(machine));
            }
            3 => self.kill(machine, long),
            4 => self.part(long),
            5 => {
                // One way is lost for good, and nobody says so.
                let conns: Vec<PipeId> = self.machines[machine].conns.values().map(|(id, _)| *id).collect();
                conns.into_iter().for_each(|id| drop(self.pipes.remove(&id)));
                self.machines[machine].conns.clear();
                // The ends that lost it close it when it is silent; this machine is not told either.
            }
            6 => self.loss = self.dice.random_range(0..60),
            _ => self.latency = self.dice.random_range(1..400),
        }
        let next = self.dice.random_range(50..4000);
        self.after(next, Event::Fault);
    }

    /// All connections of a machine are reset.
    fn cut(&mut self, machine: usize) {
        let conns: Vec<(Conn, (PipeId, usize))> =
            self.machines[machine].conns.iter().map(|(conn, pipe)| (*conn, *pipe)).collect();
        for (_, (pipe, _)) in conns {
            self.tell_closed(pipe, 0);
            // The second is told on a pipe that is gone: so it gets one of its own.
            if let Some(Pipe { ends: [_, end] }) = self.pipes.get(&pipe) {
                let (machine, boot, conn) = (end.machine, end.boot, end.conn);
                self.after(1, Event::Refused { machine, boot, conn });
            }
        }
    }

    fn kill(&mut self, machine: usize, long: u64) {
        let conns: Vec<Conn> = self.machines[machine].conns.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.close(machine, conn));
        let machine_state = &mut self.machines[machine];
        machine_state.node = None;
        machine_state.is_paused = false;
        machine_state.is_slow = false;
        machine_state.held.clear();
        self.after(long, Event::Boot(machine));
    }

    fn part(&mut self, long: u64) {
        let count = self.machines.len();
        let side: BTreeSet<usize> = (0..count).filter(|_| self.dice.random_range(0..2) == 0).collect();
        for one in 0..count {
            for other in one + 1..count {
                if side.contains(&one) != side.contains(&other) {
                    self.parted.insert((one, other));
                }
            }
        }
        self.after(long, Event::Join);
    }
}

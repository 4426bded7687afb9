//! Which broadcasts have reached everybody.

/// Keeps the count for each receiver; at most `depth` broadcasts are under way.
pub struct Board {
    /// Broadcasts that each receiver has got.
    got: Vec<u64>,
    /// Receivers that a broadcast has not reached, for each one under way.
    missing: Vec<usize>,
    /// Broadcasts that have reached everybody.
    done: u64,
}

impl Board {
    /// Nobody has got anything.
    pub fn new(receivers: usize, depth: usize) -> Self {
        Self { got: vec![0; receivers], missing: vec![receivers; depth], done: 0 }
    }

    /// A receiver got some more; answers how many broadcasts are complete by that.
    pub fn reached(&mut self, receiver: usize, count: usize) -> Result<usize, String> {
        let mut completed = 0;
        let depth = self.missing.len() as u64;
        for _ in 0..count {
            let number = self.got[receiver];
            if number >= self.done + depth {
                return Err(format!("receiver {receiver} got a broadcast that nobody sent"));
            }
            self.got[receiver] += 1;
            let missing = &mut self.missing[(number % depth) as usize];
            *missing -= 1;
            if *missing == 0 {
                *missing = self.got.len();
                self.done += 1;
                completed += 1;
            }
        }
        Ok(completed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broadcast_is_complete_with_its_last_receiver() {
        let mut board = Board::new(3, 2);
        assert_eq!(board.reached(0, 2), Ok(0));
        assert_eq!(board.reached(2, 1), Ok(0));
        assert_eq!(board.reached(1, 2), Ok(1));
        assert_eq!(board.reached(2, 1), Ok(1));
        // Both places are free again.
        assert_eq!((board.reached(2, 2), board.reached(1, 2), board.reached(0, 2)), (Ok(0), Ok(0), Ok(2)));
    }

    #[test]
    fn more_than_was_sent_is_an_error() {
        let mut board = Board::new(2, 2);
        assert_eq!(board.reached(0, 2), Ok(0));
        assert!(board.reached(0, 1).unwrap_err().contains("nobody sent"));
    }
}
